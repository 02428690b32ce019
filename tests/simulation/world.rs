//! One seed, one run: the plan that follows from it, the hosts, the trouble they get, and the end.

use std::cell::{Cell, RefCell, RefMut};
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fastrand::Rng;
use futures_util::FutureExt as _;
use heliostat::client::GroupKey;
use heliostat::crypto::Secret;
use heliostat::group::Limits;
use heliostat::group::record::{GroupRecord, Seq, Write};
use heliostat::server::{Mediator, Parts, Settings};
use heliostat::session::Timeouts;
use heliostat::store::{MemoryStore, Store};
use heliostat::time::Clock;
use heliostat::upstream::UpstreamLimits;
use heliostat::upstream::directory::{Directory, DirectoryConfig, Target};
use heliostat::upstream::framer::Framing;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Notify;
use turmoil::net::{TcpListener, TcpStream};

use super::device::Member;
use super::model::{Allowed, ConnNo, Fault, Model, Rule, Time};
use super::network::{Door, Phone, Tamper, Tampering};
use super::store::{Kept, Lie};

pub const SERVER: &str = "server";
const CHAT: &str = "chat";
/// Virtual wall clock at the beginning: 21 November 2026.
const EPOCH_MS: u64 = 1_795_219_200_000;
const TICK: Duration = Duration::from_millis(10);
/// How long the world may need to come to rest, in virtual time.
const REST: Duration = Duration::from_secs(240);

/// Everything that is decided before a run begins.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub groups: usize,
    pub devices: u64,
    /// How long the devices are wild, in virtual milliseconds.
    pub wild_ms: u64,
    pub max_slots: usize,
    pub queue_messages: u64,
    pub volatile: bool,
    pub makes_room: bool,
    pub chat: bool,
    pub wraps: bool,
    /// Messages are long and sockets take little: what waits is read by pages.
    pub heavy: bool,
    pub latency_ms: u64,
    pub troubles: u32,
    pub store_fails: bool,
    pub stops: bool,
    pub tamper: Option<Tamper>,
    pub lie: Option<Lie>,
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let one_in = |rng: &mut Rng, n: u32| rng.u32(0..n) == 0;
        let devices = rng.u64(2..6);
        Self {
            seed,
            groups: 1 + usize::from(one_in(&mut rng, 3)),
            devices,
            wild_ms: rng.u64(3_000..14_000),
            max_slots: if one_in(&mut rng, 4) { 3 } else { 10 },
            queue_messages: if one_in(&mut rng, 8) { 20 } else { 100_000 },
            volatile: one_in(&mut rng, 6),
            makes_room: one_in(&mut rng, 3),
            chat: one_in(&mut rng, 2),
            wraps: one_in(&mut rng, 4),
            heavy: one_in(&mut rng, 5),
            latency_ms: *[1, 20, 150].get(rng.usize(0..3)).unwrap(),
            troubles: rng.u32(0..6),
            store_fails: one_in(&mut rng, 4),
            stops: one_in(&mut rng, 5),
            tamper: None,
            lie: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Wild,
    Rest,
}

/// What all hosts of a run share. They live in one thread.
pub struct World {
    stage: Cell<Stage>,
    time: Cell<Time>,
    story: RefCell<Vec<String>>,
    models: Vec<RefCell<Model>>,
    members: usize,
    arrived: [Cell<usize>; 4],
    resting: RefCell<Vec<Vec<(ConnNo, bool)>>>,
    mediator: RefCell<Option<Rc<Mediator>>>,
    store: RefCell<Arc<MemoryStore>>,
    /// Whether commits have to wait.
    held: Arc<AtomicBool>,
    stop: Rc<Notify>,
}

impl World {
    pub fn stage(&self) -> Stage {
        self.stage.get()
    }

    /// The next moment.
    pub fn now(&self) -> Time {
        self.time.set(self.time.get() + 1);
        self.time.get()
    }

    pub fn model(&self, group: usize) -> RefMut<'_, Model> {
        self.models[group].borrow_mut()
    }

    pub fn tell(&self, what: fmt::Arguments<'_>) {
        let at = turmoil::sim_elapsed().unwrap_or_default().as_millis();
        self.story.borrow_mut().push(format!("{at:>7} ms  {what}"));
    }

    pub fn arrive(&self, number: usize) {
        self.arrived[number].set(self.arrived[number].get() + 1);
    }

    pub fn all_arrived(&self, number: usize) -> bool {
        self.arrived[number].get() == self.members
    }

    pub fn rests(&self, group: usize, conn: ConnNo) {
        let leads = self.models[group].borrow().leads(conn);
        self.resting.borrow_mut()[group].push((conn, leads));
    }

    fn faulty(&self) -> bool {
        self.models.iter().any(|model| !model.borrow().faults.is_empty())
    }
}

/// What came of a run.
pub struct Outcome {
    pub faults: Vec<Fault>,
    pub story: Vec<String>,
    pub acknowledged: usize,
    pub arrivals: usize,
    pub virtual_ms: u128,
}

#[derive(Debug, Clone, Copy)]
enum Trouble {
    Partition(usize),
    Repair(usize),
    Hold(usize),
    Release(usize),
    HoldChat,
    ReleaseChat,
    CrashChat,
    StartChat,
    Crash,
    Stop,
    Start,
    FailCommit(u64),
    HoldStore,
    ReleaseStore,
}

fn troubles(plan: &Plan, rng: &mut Rng, members: usize) -> Vec<(u64, Trouble)> {
    let mut out = Vec::new();
    // The mediator is down once at a time.
    let mut up_from = 0;
    for _ in 0..plan.troubles {
        let at = rng.u64(200..plan.wild_ms.max(400));
        let end = at + rng.u64(50..3_000);
        let who = rng.usize(0..members);
        // A disk that fails does so more than once.
        if plan.store_fails {
            out.push((rng.u64(200..plan.wild_ms.max(400)), Trouble::FailCommit(rng.u64(1..4))));
        }
        match rng.u8(0..12) {
            0 | 1 => out.extend([(at, Trouble::Partition(who)), (end, Trouble::Repair(who))]),
            2 | 3 => out.extend([(at, Trouble::Hold(who)), (end, Trouble::Release(who))]),
            4 => out.extend([(at, Trouble::HoldStore), (end.min(at + 900), Trouble::ReleaseStore)]),
            5 if plan.chat => out.extend([(at, Trouble::HoldChat), (end, Trouble::ReleaseChat)]),
            6 if plan.chat => out.extend([(at, Trouble::CrashChat), (end, Trouble::StartChat)]),
            5..9 if plan.stops && at > up_from => {
                up_from = at + 20_000;
                out.extend([(at, Trouble::Stop), (at + 17_000, Trouble::Start)]);
            }
            _ if at > up_from => {
                up_from = end;
                out.extend([(at, Trouble::Crash), (end, Trouble::Start)]);
            }
            _ => {}
        }
    }
    out.sort_by_key(|&(at, _)| at);
    out
}

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// A task of the mediator that panics would end in silence.
fn count_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            before(info);
        }));
    });
    PANICS.with(|panics| panics.set(0));
}

/// A runtime that is dropped ends its tasks in an order that depends on their numbers, and these are counted through the
/// whole process: so that a crash is the same crash whatever ran before, one run at a time begins at a round number.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    const ROUND: u64 = 1 << 10;
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        while tokio::spawn(async {}).id().to_string().parse::<u64>().unwrap() % ROUND != 0 {
            tokio::task::yield_now().await;
        }
    });
    alone
}

pub fn run(plan: &Plan) -> Outcome {
    let _alone = alone();
    count_panics();
    // The plan's dice are not the run's, so that a plan can be made smaller and the rest stays as it was.
    let mut rng = Rng::with_seed(plan.seed ^ 0x51);
    let keys: Vec<_> =
        (0..plan.groups).map(|_| GroupKey::new(Secret::new([rng.u8(..); 32].map(|b| b ^ rng.u8(..))))).collect();
    let store = Arc::new(MemoryStore::new());
    if plan.wraps {
        for key in &keys {
            let seq_reserved = Seq(u64::from(u32::MAX) - rng.u64(0..40));
            let record = GroupRecord { seq_reserved, ..GroupRecord::default() };
            store.commit(key.device_group_id(), vec![Write::Group(record)]).now_or_never().unwrap().unwrap();
        }
    }
    let members: Vec<_> =
        (0..plan.groups).flat_map(|group| (1..=plan.devices).map(move |device| (group, device))).collect();
    let allowed =
        Allowed { queue_limit: plan.queue_messages < 1_000, store_fails: plan.store_fails, stops: plan.stops };
    let world = Rc::new(World {
        stage: Cell::new(Stage::Wild),
        time: Cell::new(0),
        story: RefCell::default(),
        models: (0..plan.groups).map(|_| RefCell::new(Model::new(allowed))).collect(),
        members: members.len(),
        arrived: Default::default(),
        resting: RefCell::new(vec![Vec::new(); plan.groups]),
        mediator: RefCell::default(),
        store: RefCell::new(store),
        held: Arc::default(),
        stop: Rc::default(),
    });

    let mut sim = turmoil::Builder::new()
        .rng_seed(plan.seed)
        .simulation_duration(Duration::from_secs(3_600))
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(plan.latency_ms))
        .tcp_capacity(if plan.heavy { 8 } else { 256 })
        .build();
    let tampering = Tampering::new(plan.tamper);
    let (here, planned) = (Rc::clone(&world), plan.clone());
    sim.host(SERVER, move || {
        let (world, plan, tampering) = (Rc::clone(&here), planned.clone(), Arc::clone(&tampering));
        async move {
            let listener = TcpListener::bind(("0.0.0.0", 1)).await?;
            let mediator = Rc::new(Mediator::start(Door { listener, tampering }, None, parts(&world, &plan)));
            world.mediator.replace(Some(Rc::clone(&mediator)));
            world.stop.notified().await;
            world.tell(format_args!("the mediator stops"));
            let left = mediator.stop().await;
            if let Err(left) = left {
                world.model(0).fault(Rule::Base, left.to_string());
            }
            world.mediator.take();
            Ok(())
        }
    });
    sim.host(CHAT, || async {
        let listener = TcpListener::bind(("0.0.0.0", 1)).await?;
        loop {
            let (socket, _) = listener.accept().await?;
            tokio::spawn(echo(socket));
        }
    });
    let mut names = Vec::new();
    for &(group, device) in &members {
        let mut dice = rng.fork();
        let mut member = Member::new(Rc::clone(&world), group, device, keys[group].clone(), rng.fork());
        member.volatile = plan.volatile && dice.bool();
        member.makes_room = plan.makes_room && dice.bool();
        member.long = plan.heavy;
        member.chats = plan.chat && dice.bool();
        let name = format!("g{group}d{device}");
        sim.client(name.as_str(), async move {
            member.live().await;
            Ok(())
        });
        names.push(name);
    }

    let mut due = troubles(plan, &mut rng, members.len()).into_iter().peekable();
    let mut give_up = Duration::from_millis(plan.wild_ms) + REST;
    let mut finished = false;
    let mut base = None;
    loop {
        let at = u64::try_from(sim.elapsed().as_millis()).unwrap();
        while let Some((_, trouble)) = due.next_if(|&(due, _)| due <= at) {
            make(trouble, &mut sim, &world, &names);
        }
        if world.stage() == Stage::Wild && at >= plan.wild_ms && due.peek().is_none() {
            world.tell_at(at, "everybody comes to rest");
            world.stage.set(Stage::Rest);
        }
        match sim.step() {
            Ok(done) => finished |= done,
            Err(error) => {
                world.model(0).fault(Rule::Stuck, format!("the simulation failed: {error}"));
                break;
            }
        }
        if world.faulty() {
            break;
        }
        if finished {
            // Everybody has left; the mediator may take a moment to notice.
            let patience = *base.get_or_insert_with(|| sim.elapsed() + Duration::from_secs(30));
            let mediator = world.mediator.borrow().clone();
            let Some(mediator) = mediator else { break };
            if mediator.connections() == 0 && mediator.hub().awake() == 0 {
                break;
            }
            if sim.elapsed() > patience {
                let (connections, awake) = (mediator.connections(), mediator.hub().awake());
                world.model(0).fault(Rule::Base, format!("{connections} connections, {awake} groups awake"));
                break;
            }
            give_up = Duration::MAX;
        }
        if sim.elapsed() > give_up {
            world.model(0).fault(Rule::Stuck, "the devices did not come to rest");
            break;
        }
    }
    let virtual_ms = sim.elapsed().as_millis();
    if !world.faulty() {
        judge(&world, &keys);
    }
    let panics = PANICS.with(Cell::get);
    if panics > 0 {
        world.model(0).fault(Rule::CloseCode, format!("{panics} panics"));
    }
    world.mediator.take();
    drop(sim);
    let figures: Vec<_> = world.models.iter().map(|model| model.borrow().figures()).collect();
    Outcome {
        faults: world.models.iter().flat_map(|model| model.borrow().faults.clone()).collect(),
        story: world.story.take(),
        acknowledged: figures.iter().map(|f| f.0).sum(),
        arrivals: figures.iter().map(|f| f.1).sum(),
        virtual_ms,
    }
}

/// What can be said when everybody has left.
fn judge(world: &World, keys: &[GroupKey]) {
    for (group, resting) in world.resting.take().into_iter().enumerate() {
        let mut model = world.model(group);
        model.at_rest(&resting);
        model.finish();
        // Everybody who has a slot came back and acknowledged everything, so nothing is to be kept any more. A device
        // that was forgotten on purpose, or is kept for somebody who was turned away, may hold something back.
        let id = keys[group].device_group_id();
        let store = world.store.borrow();
        let snapshot = store.load(id).now_or_never().unwrap().unwrap();
        let slots = snapshot.map_or(0, |snapshot| snapshot.slots.len());
        let page = store.page(id, Seq(0), Seq(u64::MAX), 1 << 30).now_or_never().unwrap().unwrap();
        // The commit that would have written the last acknowledgements may have been told to fail.
        if slots == resting.len() && !page.entries.is_empty() && !model.allowed().store_fails {
            model.fault(Rule::Base, format!("{} entries are kept for nobody", page.entries.len()));
        }
        if page.entries.iter().any(|entry| entry.message.flags().ephemeral) {
            model.fault(Rule::EphemeralKept, "in the store");
        }
    }
}

impl World {
    fn tell_at(&self, at_ms: u64, what: &str) {
        self.story.borrow_mut().push(format!("{at_ms:>7} ms  {what}"));
    }
}

fn make(trouble: Trouble, sim: &mut turmoil::Sim<'_>, world: &World, names: &[String]) {
    let at = u64::try_from(sim.elapsed().as_millis()).unwrap();
    let named = match trouble {
        Trouble::Partition(who) | Trouble::Repair(who) | Trouble::Hold(who) | Trouble::Release(who) => {
            format!("{trouble:?} {}", names[who])
        }
        other => format!("{other:?}"),
    };
    world.tell_at(at, &format!("-- {named}"));
    let store = Arc::clone(&world.store.borrow());
    match trouble {
        Trouble::Partition(who) => sim.partition(names[who].as_str(), SERVER),
        Trouble::Repair(who) => sim.repair(names[who].as_str(), SERVER),
        Trouble::Hold(who) => sim.hold(names[who].as_str(), SERVER),
        Trouble::Release(who) => sim.release(names[who].as_str(), SERVER),
        Trouble::HoldChat => sim.hold(CHAT, SERVER),
        Trouble::ReleaseChat => sim.release(CHAT, SERVER),
        Trouble::CrashChat => sim.crash(CHAT),
        Trouble::StartChat => sim.bounce(CHAT),
        Trouble::Crash => {
            sim.crash(SERVER);
            world.mediator.take();
            world.store.replace(Arc::new(store.survivors(EPOCH_MS + at)));
            for model in &world.models {
                model.borrow_mut().forgets_acks();
            }
        }
        Trouble::Stop => world.stop.notify_one(),
        Trouble::Start => sim.bounce(SERVER),
        Trouble::FailCommit(after) => store.fail_at(store.commits() + after),
        Trouble::HoldStore => world.held.store(true, Ordering::Relaxed),
        Trouble::ReleaseStore => world.held.store(false, Ordering::Relaxed),
    }
}

fn parts(world: &World, plan: &Plan) -> Parts {
    let target = Target { addresses: vec![format!("{CHAT}:1")], framing: Framing::Csp };
    let default = plan.chat.then_some(target);
    let since_start = u64::try_from(turmoil::sim_elapsed().unwrap_or_default().as_millis()).unwrap();
    Parts {
        store: Arc::new(Kept::new(Arc::clone(&world.store.borrow()), Arc::clone(&world.held), plan.lie)),
        neighbours: None,
        dial: Arc::new(Phone),
        upstream: UpstreamLimits::default(),
        settings: Settings {
            directory: Directory::new(DirectoryConfig { default, ..DirectoryConfig::default() }).unwrap(),
            limits: Limits {
                max_device_slots: plan.max_slots,
                max_queue_messages: plan.queue_messages,
                volatile_slot_ttl: Duration::from_secs(2),
                ..Limits::default()
            },
            timeouts: Timeouts {
                handshake: Duration::from_secs(3),
                idle: Duration::from_secs(6),
                ping_every: Duration::from_secs(1),
            },
            ..Settings::default()
        },
        clock: Clock::following(EPOCH_MS + since_start),
        durability: "memory",
    }
}

/// A chat server that says what it is told, one frame for one frame.
async fn echo(mut socket: TcpStream) -> std::io::Result<()> {
    socket.write_all(&[0xaa; 80]).await?;
    socket.write_all(&[0xbb; 32]).await?;
    loop {
        let len = socket.read_u16_le().await?;
        let mut frame = len.to_le_bytes().to_vec();
        frame.resize(2 + usize::from(len), 0);
        socket.read_exact(&mut frame[2..]).await?;
        // Torn, so that the seams have to be found.
        let (head, tail) = frame.split_at(frame.len() / 3);
        socket.write_all(head).await?;
        socket.write_all(tail).await?;
    }
}
