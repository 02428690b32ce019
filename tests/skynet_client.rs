//! `heliostat skynet` and the library below it: clients that seal and open what they say, against a real server over real
//! sockets, over TLS, through a mediator, and as people run them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic"
)]
#![allow(dead_code, unreachable_pub, missing_docs, missing_debug_implementations, reason = "a world has more in it")]

mod common;
#[path = "skynet/world.rs"]
mod world;

use std::collections::{BTreeMap, VecDeque};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command as Process, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use heliostat::chat::skynet::store::Place as Kept;
use heliostat::chat::skynet::wire::blob::AccountKeys;
use heliostat::chat::skynet::wire::{
    AccountId, Announced, Body, ChannelId, ChannelType, ConnectionState, Content, CreateAccountStatus,
    CreateSessionStatus, DateTime, Delivery, FileId, FromClient, HEADER, Kind, MessageFlags, MessageId,
    MessageSendStatus, RestoreSessionStatus, SessionId, ToClient, Upload, WebToken, read_header,
};
use heliostat::client::{GroupKey, Mediator, Trust};
use heliostat::crypto::Secret;
use heliostat::net::listen::Door;
use heliostat::tools::skynet::event::Said;
use heliostat::tools::skynet::web::WebError;
use heliostat::tools::skynet::{BadFolder, Client, Command, Event, Failure, Place, Session, Settings, Web, register};
use heliostat::upstream::Framing;
use heliostat::wire::d2m::{DeviceId, ServerGroup};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use world::{Ground, World, soon};
use zeroize::Zeroizing;

const ALICE: &str = "alice@example.com";
const BOB: &str = "bob@example.com";
const CAROL: &str = "carol@example.com";
const DAVE: &str = "dave@example.com";
const PATIENCE: Duration = Duration::from_secs(60);

/// A server, and where clients keep what they know.
struct Home {
    world: World,
    dir: tempfile::TempDir,
}

impl Home {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Sealed messages that do not say with which key are not taken.
        let mut ground = Ground::new(&dir.path().join("server"), Kept::Sqlite);
        ground.settings.strict_dependencies = true;
        // TLS is the binary's story.
        ground.door = Door::default();
        Self { world: World::start(&ground).await, dir }
    }

    fn place(&self) -> Place {
        Place::direct(&format!("plain://{}", self.world.address()), &Trust::System).unwrap()
    }

    fn state(&self, device: &str) -> PathBuf {
        self.dir.path().join("devices").join(device)
    }

    async fn try_open(&self, device: &str, name: &str, password: &str) -> Result<Client, Failure> {
        let (dir, password) = (self.state(device), Zeroizing::new(password.to_owned()));
        soon(Client::open(self.place(), Settings::default(), &dir, name, password)).await
    }

    /// A device of an account whose password is its name, which has heard everything.
    async fn device(&self, device: &str, name: &str) -> Person {
        self.device_with(device, name, name).await
    }

    async fn device_with(&self, device: &str, name: &str, password: &str) -> Person {
        let mut person = Person::of(self.try_open(device, name, password).await.unwrap());
        person.settle().await;
        person
    }

    /// A new account with its first device.
    async fn account(&self, name: &str) -> Person {
        let status = soon(register(&self.place(), &Settings::default(), name, name)).await.unwrap();
        assert_eq!(status, CreateAccountStatus::SUCCESS);
        self.world.confirm(name).await;
        self.device(name, name).await
    }

    /// Whether the server has these bytes on its disk.
    fn server_knows(&self, secret: &str) -> bool {
        let files = std::fs::read_dir(self.dir.path().join("server")).unwrap().map(|it| it.unwrap().path());
        let mut contents = files.filter(|it| it.is_file()).map(|it| std::fs::read(it).unwrap());
        contents.any(|bytes| bytes.windows(secret.len()).any(|it| it == secret.as_bytes()))
    }

    async fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// A client, and what happened that nobody has looked at.
struct Person {
    client: Client,
    seen: VecDeque<Event>,
}

impl Person {
    fn of(client: Client) -> Self {
        Self { client, seen: VecDeque::new() }
    }

    /// Until everything that this client has to do by itself is done.
    async fn settle(&mut self) {
        let settled = tokio::time::timeout(PATIENCE, self.client.settle()).await;
        settled.unwrap_or_else(|_| panic!("it waits: {:?}", self.client)).unwrap();
        self.seen.extend(std::iter::from_fn(|| self.client.take_event()));
    }

    /// The first event that is what is looked for; those before it are kept.
    async fn find<T>(&mut self, wanted: impl Fn(&Event) -> Option<T>) -> T {
        if let Some((at, found)) = self.seen.iter().enumerate().find_map(|(at, event)| Some((at, wanted(event)?))) {
            self.seen.remove(at);
            return found;
        }
        loop {
            let next = tokio::time::timeout(PATIENCE, self.client.next_event()).await;
            let Ok(next) = next else {
                panic!("waited for something else than {:#?}: {:?}", self.lines(), self.client)
            };
            let event = next.unwrap().expect("the account is there");
            match wanted(&event) {
                Some(found) => return found,
                None => self.seen.push_back(event),
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        self.seen.iter().map(Event::line).collect()
    }

    /// Types a line and waits until what it asks for is done.
    async fn types(&mut self, line: &str) {
        let command = Command::parse(line).unwrap().unwrap();
        self.client.obey(command).unwrap();
        self.settle().await;
    }

    /// The same for what has to work.
    async fn does(&mut self, line: &str) {
        self.types(line).await;
        let failed: Vec<_> = self.seen.iter().filter(|it| it.is_failure()).collect();
        assert!(failed.is_empty(), "{line}: {:#?}", self.lines());
    }

    /// The same for what has not; why not.
    async fn fails(&mut self, line: &str) -> String {
        self.types(line).await;
        self.find(|event| event.is_failure().then(|| event.line())).await
    }

    /// Says something in the current channel. Its number.
    async fn says(&mut self, text: &str) -> MessageId {
        self.does(text).await;
        self.find(|event| if let Event::Sent { id, .. } = event { Some(*id) } else { None }).await
    }

    /// Waits until somebody says that.
    async fn hears(&mut self, text: &str) -> Said {
        let wanted = |event: &Event| match event {
            Event::Message(said) if said.text.as_deref() == Some(text) => Some(said.clone()),
            _ => None,
        };
        let said = self.find(wanted).await;
        self.settle().await;
        said
    }

    async fn is_told(&mut self, id: MessageId, read: bool) -> String {
        let wanted = |event: &Event| match event {
            Event::Receipt { id: of, by, read: is, .. } if (*of, *is) == (id, read) => Some(by.clone()),
            _ => None,
        };
        self.find(wanted).await
    }

    fn here(&self) -> ChannelId {
        self.client.current().unwrap()
    }

    /// What was said in the current channel, as this client knows it.
    fn history(&self) -> Vec<String> {
        self.texts(self.here())
    }

    fn texts(&self, channel: ChannelId) -> Vec<String> {
        let here = self.client.book().messages().filter(|it| it.delivery.channel == channel);
        here.filter_map(|it| self.client.said(it.delivery.id)?.text).collect()
    }
}

fn is_keys(event: &Event) -> Option<()> {
    matches!(event, Event::Keys { .. }).then_some(())
}

fn is_changed(event: &Event) -> Option<Vec<String>> {
    if let Event::Changed(it) = event { Some(it.members.clone()) } else { None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_who_have_never_met_talk_and_a_new_device_reads_it_all() {
    let home = Home::new().await;
    let mut alice = home.account(ALICE).await;
    let refused = home.try_open("nobody", ALICE, "wrong").await;
    assert!(matches!(refused, Err(Failure::Credentials)), "{refused:?}");
    assert!(!home.state("nobody").exists(), "nothing is kept of a login that came to nothing");

    // Nobody has ever been there as bob: there are no keys, and so nothing to be said.
    soon(register(&home.place(), &Settings::default(), BOB, BOB)).await.unwrap();
    assert!(matches!(home.try_open("bob", BOB, BOB).await, Err(Failure::Unconfirmed)));
    assert!(alice.fails("/contact bob@example.com").await.contains("nobody called bob"));
    home.world.confirm(BOB).await;
    alice.does("/contact BOB@example.com").await;
    assert!(alice.fails("too early").await.contains("no key"));
    let mut bob = home.device("bob", BOB).await;
    alice.find(is_keys).await;
    bob.does("/contact alice@example.com").await;

    let first = alice.says("attack at dawn").await;
    let heard = bob.hears("attack at dawn").await;
    assert_eq!((heard.id, heard.from.as_str(), heard.own), (first, ALICE, false));
    assert_eq!(alice.is_told(first, false).await, BOB);
    bob.does("/read").await;
    assert_eq!(alice.is_told(first, true).await, BOB);
    bob.does(&format!("/reply {} rather at noon", first.0)).await;
    assert_eq!(alice.hears("rather at noon").await.quoted, first);
    alice.does(&format!("/edit {} attack at noon", first.0)).await;
    let edited = |event: &Event| if let Event::Edited(said) = event { Some(said.text.clone()) } else { None };
    assert_eq!(bob.find(edited).await.as_deref(), Some("attack at noon"));
    let regretted = alice.says("I am afraid").await;
    alice.does(&format!("/delete {}", regretted.0)).await;
    assert_eq!(bob.find(edited).await, None);
    assert!(bob.fails(&format!("/edit {} I am not", first.0)).await.contains("nothing that you said"));

    // With a file that is small enough to come with its message.
    let map = home.file("map.txt", "here be dragons").await;
    alice.does(&format!("/file {map} a map")).await;
    let said = bob.hears("a map").await;
    assert_eq!(said.file.map(|it| (it.name, it.length, it.external)), Some(("map.txt".to_owned(), 15, false)));
    let copy = home.dir.path().join("copy");
    bob.does(&format!("/save {} {}", said.id.0, copy.display())).await;
    assert_eq!(std::fs::read_to_string(&copy).unwrap(), "here be dragons");
    assert!(bob.fails(&format!("/save {} {}", said.id.0, copy.display())).await.contains("cannot be written"));

    // A device that was not there reads it all, and says the next thing; the others hear it, the account's own included.
    let mut tablet = home.device("tablet", ALICE).await;
    tablet.does("/to bob@example.com").await;
    assert_eq!(tablet.history(), ["attack at noon", "rather at noon", "a map"]);
    assert_eq!(tablet.history(), alice.history());
    assert_eq!(tablet.history(), bob.history());
    tablet.says("from the tablet").await;
    assert!(alice.hears("from the tablet").await.own);
    assert!(!bob.hears("from the tablet").await.own);

    // What the server has of it is of no use to it.
    for secret in ["attack at", "rather at", "here be dragons", "from the tablet"] {
        assert!(!home.server_knows(secret), "{secret}");
    }
    assert!(home.server_knows(ALICE), "as it would be found");
    // Nor to whoever reads what is kept here.
    let journal = std::fs::read(home.state("tablet").join("journal")).unwrap();
    assert!(!journal.windows(9).any(|it| it == b"attack at"));
    home.world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_changes_its_keys_and_who_joins_reads_what_it_was_given() {
    let home = Home::new().await;
    let mut alice = home.account(ALICE).await;
    let mut others = BTreeMap::new();
    for name in [BOB, CAROL, DAVE] {
        let other = home.account(name).await;
        alice.does(&format!("/contact {name}")).await;
        others.insert(name, other);
    }
    let [mut bob, mut carol, mut dave] = [BOB, CAROL, DAVE].map(|name| others.remove(name).unwrap());
    alice.does("/group us bob@example.com").await;
    alice.does("/to us").await;
    bob.find(|event| matches!(event, Event::Changed(it) if it.name == "us").then_some(())).await;
    bob.does("/to us").await;
    alice.says("only us two").await;
    bob.hears("only us two").await;
    bob.says("yes").await;
    alice.hears("yes").await;
    assert!(bob.fails("/add carol@example.com").await.contains("nobody is called"), "he does not know her");
    assert!(bob.fails("/remove alice@example.com").await.contains("administrators"));

    // Carol is told what was before, dave is not.
    alice.does("/add carol@example.com history").await;
    alice.does("/add dave@example.com mute").await;
    for newcomer in [&mut carol, &mut dave] {
        newcomer
            .find(|event| matches!(event, Event::Changed(it) if it.name == "us" && it.members.len() >= 3).then_some(()))
            .await;
        newcomer.settle().await;
        newcomer.does("/to us").await;
        assert_eq!(newcomer.history(), [""; 0]);
        newcomer.does("/older").await;
    }
    assert_eq!(carol.history(), ["only us two", "yes"]);
    assert_eq!(dave.history(), [""; 0], "there is something, which he cannot read");
    assert!(dave.client.book().messages().any(|it| it.delivery.channel == dave.here() && it.opened.is_none()));
    assert!(dave.fails("may I?").await.contains("access denied"));

    // Another device of the administrator learns the keys from what was said to the members.
    let mut tablet = home.device("tablet", ALICE).await;
    tablet.does("/to us").await;
    assert_eq!(tablet.history(), ["only us two", "yes"]);
    tablet.says("all of us").await;
    for other in [&mut alice, &mut bob, &mut carol, &mut dave] {
        other.hears("all of us").await;
    }
    // It can change the group as well, and who was given the history still has it.
    tablet.does("/remove bob@example.com").await;
    bob.find(|event| matches!(event, Event::ChannelGone { name, .. } if name == "us").then_some(())).await;
    assert!(bob.fails("still here?").await.contains("no current channel"));
    carol.find(|event| is_changed(event).filter(|members| !members.contains(&BOB.to_owned()))).await;
    carol.says("without bob").await;
    alice.hears("without bob").await;
    tablet.hears("without bob").await;

    // Of two devices that change it at the same time, both get their way, one after the other.
    alice.settle().await;
    let (add, change) = ("/add bob@example.com history", "/add dave@example.com");
    tokio::join!(alice.does(add), tablet.does(change));
    for device in [&mut alice, &mut tablet] {
        let us = device.here();
        let members = |device: &Person| device.client.book().channel(us).unwrap().members.clone();
        while members(device).len() < 4 || members(device).values().any(|flags| flags.0 & 2 != 0) {
            device.find(is_changed).await;
        }
    }
    dave.find(|event| is_changed(event).filter(|members| members.len() == 4)).await;
    dave.settle().await;
    dave.says("at last").await;
    for other in [&mut alice, &mut bob, &mut carol, &mut tablet] {
        other.hears("at last").await;
    }
    bob.does("/to us").await;
    bob.does("/older").await;
    assert_eq!(bob.history(), ["only us two", "yes", "all of us", "without bob", "at last"], "also what he missed");

    // A profile: those who follow hear its owner, and do not see each other.
    alice.does("/profile bob@example.com carol@example.com").await;
    alice.does(&format!("/to the profile of {ALICE}")).await;
    alice.does("a fine day").await;
    let heard = bob.hears("a fine day").await;
    assert_eq!(heard.place, format!("the profile of {ALICE}"));
    assert!(!bob.client.book().channel(heard.channel).unwrap().members.contains_key(&carol.client.account()));
    let profile = carol.hears("a fine day").await.channel;
    carol.does(&format!("/to #{}", profile.0)).await;
    assert!(carol.fails("mine too").await.contains("access denied"));

    alice.does("/to us").await;
    alice.does("/end").await;
    carol.does("/to us").await;
    assert!(carol.fails("anybody?").await.contains("access denied"));
    assert!(!home.server_knows("all of us") && !home.server_knows("a fine day"));
    home.world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_and_names_change_and_every_device_follows() {
    let home = Home::new().await;
    let (mut alice, mut bob) = (home.account(ALICE).await, home.account(BOB).await);
    alice.does("/contact bob@example.com").await;
    bob.does("/contact alice@example.com").await;
    let mut tablet = home.device("tablet", ALICE).await;
    alice.does("/rename my old friend").await;
    alice.says("before").await;
    bob.hears("before").await;
    tablet.hears("before").await;
    assert!(tablet.client.book().channels().any(|it| it.name == "my old friend"), "for the account's own devices");
    assert!(!home.server_knows("my old friend"));

    // The tablet does not know the new password, but everything that is not for the account alone.
    let password = home.file("password", "second\n").await;
    alice.does(&format!("/password {password}")).await;
    let known = |event: &Event| if let Event::Password { known } = event { Some(*known) } else { None };
    assert!(alice.find(known).await);
    assert!(!tablet.find(known).await);
    alice.does("/rename bob").await;
    alice.says("between").await;
    tablet.hears("between").await;
    assert!(!tablet.client.book().channels().any(|it| it.name == "bob"), "sealed with what it does not know");
    let wrong = home.file("wrong", "third").await;
    assert!(tablet.fails(&format!("/unlock {wrong}")).await.contains("not the account's password"));
    tablet.does(&format!("/unlock {password}")).await;
    assert!(tablet.find(known).await);
    assert!(tablet.client.book().channels().any(|it| it.name == "bob"));
    drop(tablet);
    let kept = home.try_open("tablet", ALICE, ALICE).await;
    assert!(matches!(kept, Err(Failure::Folder(BadFolder::Password(_)))), "{kept:?}");
    let mut tablet = home.device_with("tablet", ALICE, "second").await;
    assert!(matches!(home.try_open("other", ALICE, ALICE).await, Err(Failure::Credentials)));

    // A new device knows the new password alone, and opens what was sealed with the old one.
    let mut phone = home.device_with("phone", ALICE, "second").await;
    phone.does("/to bob").await;
    assert_eq!(phone.history(), ["before", "between"]);

    // Another name is part of every key: one of the devices sees to it, and the others follow.
    let name = "alice@example.org";
    alice.does(&format!("/address {name}")).await;
    // The mail goes out behind the answer.
    let mailed = async {
        while home.world.mail.reasons(name) == 0 {
            tokio::task::yield_now().await;
        }
    };
    soon(mailed).await;
    home.world.confirm(name).await;
    let is_name = |event: &Event| matches!(event, Event::Name { name: is } if is == name).then_some(());
    for device in [&mut alice, &mut tablet, &mut phone] {
        device.find(is_name).await;
        device.find(known).await;
        device.settle().await;
    }
    for device in [&alice, &tablet, &phone] {
        assert!(!device.seen.iter().any(Event::is_failure), "nobody asked for it: {:#?}", device.lines());
    }
    bob.find(|event| matches!(event, Event::Profile { address, .. } if address == name).then_some(())).await;
    alice.does("/rename bobby").await;
    let renamed = |event: &Event| matches!(event, Event::Changed(it) if it.name == "bobby").then_some(());
    tablet.find(renamed).await;
    phone.find(renamed).await;
    assert!(matches!(home.try_open("other", ALICE, "second").await, Err(Failure::Credentials)), "the alias is over");
    let mut other = home.device_with("other", name, "second").await;
    assert!(other.client.book().channels().any(|it| it.name == "bobby"));
    // Each of them comes back, with what is kept sealed under the new name.
    drop((alice, tablet, phone));
    for device in [ALICE, "tablet", "phone"] {
        let back = home.device_with(device, name, "second").await;
        assert!(back.client.book().is_unlocked());
    }

    // For good.
    assert!(other.fails("/delete-account alice@example.com").await.contains("not alice@example.com"));
    other.client.obey(Command::parse(&format!("/delete-account {name}")).unwrap().unwrap()).unwrap();
    while soon(other.client.next_event()).await.unwrap().is_some() {}
    assert!(!home.state("other").join("journal").exists());
    bob.find(|event| matches!(event, Event::Changed(it) if it.archived == "deleted").then_some(())).await;
    bob.settle().await;
    assert!(bob.fails("are you there?").await.contains("access denied"));
    home.world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_show_themselves_and_do_not_have_to_hear_everybody() {
    let home = Home::new().await;
    let (mut alice, mut bob) = (home.account(ALICE).await, home.account(BOB).await);
    alice.does("/nickname Alice").await;
    bob.does("/search lice").await;
    let found = |event: &Event| if let Event::Found { names } = event { Some(names.clone()) } else { None };
    assert_eq!(bob.find(found).await, [ALICE]);
    bob.find(|event| matches!(event, Event::Profile { nickname, .. } if nickname == "Alice").then_some(())).await;
    bob.does("/contact alice@example.com").await;
    let current = |event: &Event| if let Event::Current { name, .. } = event { Some(name.clone()) } else { None };
    assert_eq!(bob.find(current).await, "Alice");
    alice.find(|event| matches!(event, Event::Channel(_)).then_some(())).await;
    alice.does("/to bob@example.com").await;
    alice.does("/bio likes mountains").await;
    bob.find(|event| matches!(event, Event::Profile { bio, .. } if bio == "likes mountains").then_some(())).await;
    let picture = home.file("me.png", "not really a picture").await;
    alice.does(&format!("/picture {picture} me")).await;
    let pictured = |event: &Event| if let Event::Profile { picture, .. } = event { *picture } else { None };
    let picture = bob.find(pictured).await;
    bob.does(&format!("/save {picture} {}", home.dir.path().join("alice.png").display())).await;
    assert_eq!(std::fs::read(home.dir.path().join("alice.png")).unwrap(), b"not really a picture");
    alice.does(&format!("/background {}", home.file("sky.png", "blue").await)).await;

    // Who is there, and what they do.
    alice.does("/online").await;
    let online = |event: &Event| {
        if let Event::Presence { name, online, .. } = event { Some((name.clone(), *online)) } else { None }
    };
    assert_eq!(bob.find(online).await, ("Alice".to_owned(), true));
    alice.does("/typing").await;
    let action = |event: &Event| {
        if let Event::Action { name, action, .. } = event { Some((name.clone(), action.clone())) } else { None }
    };
    assert_eq!(bob.find(action).await, ("Alice".to_owned(), "typing".to_owned()));
    alice.does("/away").await;
    assert_eq!(bob.find(online).await, ("Alice".to_owned(), false));

    // Both see the same two fingerprints, and one says that they are right: on each device.
    alice.does("/verify").await;
    bob.does("/verify").await;
    let print = |event: &Event| match event {
        Event::Fingerprint { theirs, own, verified, .. } => Some((theirs.clone(), own.clone(), *verified)),
        _ => None,
    };
    let ((his, hers, no), (hers_too, his_too, _)) = (alice.find(print).await, bob.find(print).await);
    assert!(his == his_too && hers == hers_too && his != hers && !no);
    alice.does("/verified").await;
    let mut tablet = home.device("tablet", ALICE).await;
    tablet.does("/to bob@example.com").await;
    tablet.does("/verify").await;
    assert!(tablet.find(print).await.2);
    alice.does("/devices").await;
    let devices = |event: &Event| if let Event::Devices { devices } = event { Some(devices.clone()) } else { None };
    let devices = alice.find(devices).await;
    let this: Vec<_> = devices.iter().filter(|it| it.this).map(|it| it.session).collect();
    assert_eq!((devices.len(), this), (2, vec![alice.client.session()]));

    bob.says("hello").await;
    alice.hears("hello").await;
    alice.does("/block bob@example.com").await;
    bob.find(|event| matches!(event, Event::Changed(it) if it.archived == "blocked").then_some(())).await;
    assert!(bob.fails("hello?").await.contains("access denied"));
    tablet.find(|event| matches!(event, Event::Blocked { accounts, .. } if accounts == &[BOB]).then_some(())).await;
    tablet.does("/unblock bob@example.com").await;
    bob.find(|event| matches!(event, Event::Changed(it) if it.archived == "none").then_some(())).await;
    bob.settle().await;
    bob.says("hello again").await;
    alice.hears("hello again").await;
    home.world.stop().await;
}

/// Two who talk all the time, over connections that are lost all the time, in processes that end all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_lost_on_the_way_comes_once_and_in_order() {
    const SAID: usize = 60;
    let home = Home::new().await;
    let (mut alice, mut bob) = (home.account(ALICE).await, home.account(BOB).await);
    alice.does("/contact bob@example.com").await;
    bob.does("/contact alice@example.com").await;
    let channel = alice.here();
    drop((alice, bob));
    let talks = |device: &'static str, other: &'static str, seed: u64| {
        let home = &home;
        async move {
            let mut dice = fastrand::Rng::with_seed(seed);
            // Connections that went while something was on the line or in it.
            let mut cut = 0;
            let (mut said, mut sent, mut heard) = (0, 0, Vec::new());
            let mut person = Person::of(home.try_open(device, device, device).await.unwrap());
            // What the other one says already is told like everything else.
            person.client.obey(Command::To { channel: other.to_owned() }).unwrap();
            while sent < SAID || heard.len() < SAID {
                if said < SAID && !person.client.is_busy() && dice.u8(..3) > 0 {
                    let text = format!("{device} {said}");
                    person.client.obey(Command::Say { text }).unwrap();
                    said += 1;
                }
                match dice.u8(..60) {
                    0 => {
                        person.client.drop_connection().unwrap();
                        cut += u32::from(said > sent);
                    }
                    // As when the process is killed: what was kept is all that is left.
                    1 => {
                        let current = person.client.current();
                        drop(person);
                        person = Person::of(home.try_open(device, device, device).await.unwrap());
                        person.client.obey(Command::To { channel: other.to_owned() }).unwrap();
                        assert_eq!(person.client.current(), current);
                    }
                    _ => {}
                }
                // Whether something happens or not, it goes on.
                let patience = Duration::from_millis(dice.u64(1..20));
                if let Ok(happened) = tokio::time::timeout(patience, person.client.drive()).await {
                    happened.unwrap();
                }
                while let Some(event) = person.client.take_event() {
                    match event {
                        Event::Sent { .. } => sent += 1,
                        Event::Message(said) => heard.push(said.text.unwrap()),
                        other => assert!(!other.is_failure(), "{other:?}"),
                    }
                }
            }
            person.settle().await;
            let expected: Vec<String> = (0..SAID).map(|n| format!("{other} {n}")).collect();
            assert_eq!(heard, expected);
            (person, cut)
        }
    };
    let seed = world::seed();
    let both = async { tokio::join!(talks(ALICE, BOB, seed), talks(BOB, ALICE, !seed)) };
    let ((alice, one), (bob, other)) = tokio::time::timeout(3 * PATIENCE, both).await.unwrap();
    assert!(one + other > 0, "nothing was ever on its way");
    // All have the same, and a device that was not there finds no more and no less.
    let all = alice.texts(channel);
    assert_eq!((all.len(), &all), (2 * SAID, &bob.texts(channel)));
    assert_eq!(home.device("tablet", ALICE).await.texts(channel), all);
    home.world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_device_of_a_group_has_a_session_and_all_have_the_same_conversation() {
    let home = Home::new().await;
    let setup =
        common::Setup { upstream: Some(home.world.address()), framing: Framing::Skynet, ..common::Setup::default() };
    let server = common::Server::start(&home.dir.path().join("mediator"), setup).await;
    let key = home.dir.path().join("group.key");
    std::fs::write(&key, hex::encode(GroupKey::generate().dgk().expose())).unwrap();
    let address = format!("ws://{}", server.address);
    let mediator = Mediator::new(&address, &Trust::System).unwrap();
    let group = ServerGroup::new("a0").unwrap();
    let behind = |device: u64| Place::through(mediator.clone(), &address, &key, group.clone(), DeviceId(device));
    let open = |device: u64| {
        let (place, dir) = (behind(device), home.state(&device.to_string()));
        async move {
            let password = Zeroizing::new(ALICE.to_owned());
            let client = soon(Client::open(place, Settings::default(), &dir, ALICE, password)).await.unwrap();
            let mut person = Person::of(client);
            person.settle().await;
            person
        }
    };
    let mut bob = home.account(BOB).await;
    soon(register(&behind(1), &Settings::default(), ALICE, ALICE)).await.unwrap();
    home.world.confirm(ALICE).await;
    let (mut first, mut second) = (open(1).await, open(2).await);
    assert_eq!(first.client.account(), second.client.account());
    assert_ne!(first.client.session(), second.client.session());

    first.does("/contact bob@example.com").await;
    first.says("from the first").await;
    bob.hears("from the first").await;
    assert!(second.hears("from the first").await.own);
    bob.does("/contact alice@example.com").await;
    // As long as a message can be, which is longer than what the mediator carries at once.
    let long = "long ".repeat(12_000);
    bob.says(&long).await;
    first.hears(&long).await;
    second.hears(&long).await;

    // One of them loses its mediator, and misses nothing; the other goes on.
    first.client.drop_connection().unwrap();
    second.does("/to bob@example.com").await;
    second.says("from the second").await;
    bob.hears("from the second").await;
    assert!(first.hears("from the second").await.own);
    for client in [&first, &second, &bob] {
        assert_eq!(client.texts(bob.here()), ["from the first", &long, "from the second"]);
    }
    let session = second.client.session();
    drop(second);
    // It comes back as the device that it was.
    let second = open(2).await;
    assert_eq!((second.client.session(), second.texts(bob.here()).len()), (session, 3));
    drop((first, second));
    server.stop().await;
    home.world.stop().await;
}

/// A server that ends the connection, as servers do, whenever it is told a biography; everything else it takes. It tells what it took.
async fn choosy_server(listener: TcpListener, key_hash: Secret<32>, took: tokio::sync::mpsc::Sender<Kind>) {
    let (me, loopback, data, created) = (AccountId(1), ChannelId(2), ChannelId(3), DateTime::NONE);
    let sync = |fresh: bool| {
        let announced = |channel, channel_type| ToClient::CreateChannel {
            channel,
            announced: Announced { channel_type, owner: me, created, counterpart: AccountId::NONE },
        };
        let first = Content::PasswordUpdate {
            previous_key_hash: Secret::new([0; 32]),
            key_hash: key_hash.clone(),
            key_history: Vec::new().into(),
        };
        let flags = MessageFlags::LOOPBACK.and(MessageFlags::UNENCRYPTED);
        let body = Body::new(Kind::PasswordUpdate, flags, first.encode(None).unwrap());
        let (id, skip_count, dispatched) = (MessageId(1), -1, created);
        let all = [
            announced(loopback, ChannelType::Loopback),
            announced(data, ChannelType::AccountData),
            ToClient::Message(Delivery { channel: loopback, sender: me, id, skip_count, dispatched, body }),
        ];
        let mut packets = vec![ToClient::SyncStarted { min_count: -1 }];
        packets.extend(all.into_iter().filter(|_| fresh));
        packets.push(ToClient::SyncFinished {});
        packets
    };
    let mut next = 1;
    while let Ok((mut tcp, _)) = listener.accept().await {
        loop {
            let mut header = [0; HEADER];
            if tcp.read_exact(&mut header).await.is_err() {
                break;
            }
            let (id, len) = read_header(header);
            let mut payload = vec![0; len];
            tcp.read_exact(&mut payload).await.unwrap();
            let answers = match FromClient::decode(id, &payload).unwrap() {
                FromClient::ConnectionHandshake { .. } => {
                    vec![ToClient::ConnectionResponse { state: ConnectionState::Valid }]
                }
                FromClient::CreateSession { .. } => {
                    let (status, session, token) = (CreateSessionStatus::SUCCESS, SessionId(4), Secret::new([0; 32]));
                    let web_token = WebToken::default();
                    let first = ToClient::CreateSessionResponse { status, account: me, session, token, web_token };
                    std::iter::once(first).chain(sync(true)).collect()
                }
                FromClient::RestoreSession { .. } => {
                    let first = ToClient::RestoreSessionResponse { status: RestoreSessionStatus::SUCCESS };
                    std::iter::once(first).chain(sync(false)).collect()
                }
                FromClient::Message(upload) if upload.body.kind == Kind::Bio => break,
                FromClient::Message(Upload { channel, temp, body }) => {
                    took.send(body.kind).await.unwrap();
                    next += 1;
                    let (status, skip_count, dispatched) = (MessageSendStatus::SUCCESS, 0, created);
                    let message = MessageId(next);
                    vec![ToClient::ChannelMessageResponse { channel, temp, status, message, skip_count, dispatched }]
                }
                other => panic!("{other:?}"),
            };
            for answer in answers {
                tcp.write_all(&answer.encode().unwrap()).await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_will_not_have_does_not_lock_a_device_out() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = Place::direct(&format!("plain://{}", listener.local_addr().unwrap()), &Trust::System).unwrap();
    let (took, mut taken) = tokio::sync::mpsc::channel(64);
    tokio::spawn(choosy_server(listener, AccountKeys::derive(ALICE, "pw").key_hash, took));
    let open = || {
        let (place, password) = (place.clone(), Zeroizing::new("pw".to_owned()));
        soon(Client::open(place, Settings::default(), dir.path(), ALICE, password))
    };
    let mut alice = Person::of(open().await.unwrap());
    alice.settle().await;
    for line in ["/bio unwanted", "/nickname Alice"] {
        alice.client.obey(Command::parse(line).unwrap().unwrap()).unwrap();
    }
    // The process ends in the middle of it: what is kept is what has to be said.
    alice.find(|event| matches!(event, Event::Lost { .. }).then_some(())).await;
    drop(alice);
    let mut alice = Person::of(open().await.unwrap());
    alice.settle().await;
    let refused = alice.find(|event| event.is_failure().then(|| event.line())).await;
    assert!(refused.contains("what you say about yourself was not taken: the server closes"), "{refused}");
    alice.does("/nickname Alicia").await;
    drop(alice);
    // It is not said again, and everything else was taken once.
    let mut alice = Person::of(open().await.unwrap());
    alice.settle().await;
    drop(alice);
    let mut kinds = Vec::new();
    while let Ok(kind) = taken.try_recv() {
        kinds.push(kind);
    }
    assert_eq!(kinds, [Kind::PrivateKeys, Kind::PublicKeys, Kind::Nickname, Kind::Nickname]);
}

/// A place for files that keeps what it is given: the requests of spec 4.15, and nothing behind them.
async fn file_server(listener: TcpListener, files: Arc<Mutex<BTreeMap<i64, Vec<u8>>>>) {
    let base = format!("http://{}", listener.local_addr().unwrap());
    while let Ok((tcp, _)) = listener.accept().await {
        let mut io = tokio::io::BufReader::new(tcp);
        let (mut head, mut len) = (String::new(), 0);
        loop {
            let mut line = String::new();
            io.read_line(&mut line).await.unwrap();
            if line.trim().is_empty() {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                len = value.trim().parse().unwrap();
            }
            head.push_str(&line);
        }
        let mut body = vec![0; len];
        io.read_exact(&mut body).await.unwrap();
        let words: Vec<&str> = head.split_whitespace().collect();
        let (method, (path, query)) = (words[0], words[1].split_once('?').unwrap());
        let name = path.rsplit('/').next().unwrap();
        let moved = |id: i64, ticket: &str| {
            // A place may be named with its server or without.
            let base = if id % 2 == 0 { &base } else { "" };
            let location = format!("{base}/cdn/filetransfer/{id}?token={ticket}");
            (format!("307 Moved\r\nLocation: {location}\r\nX-Skynet-FileId: {id}"), Vec::new())
        };
        let (status, body) = match (method, path.split('/').nth(1).unwrap(), name.parse::<i64>()) {
            (_, "api", _) if query != "session=-7&token=web" => ("401 Who?".to_owned(), Vec::new()),
            ("PUT", "api", _) => moved(-1 - i64::try_from(files.lock().unwrap().len()).unwrap(), "up"),
            ("GET", "api", Ok(id)) if files.lock().unwrap().contains_key(&id) => moved(id, "down"),
            ("PUT", "cdn", Ok(id)) if query == "token=up" => {
                files.lock().unwrap().insert(id, body);
                ("201 Created".to_owned(), Vec::new())
            }
            ("GET", "cdn", Ok(id)) if query == "token=down" => {
                ("200 OK".to_owned(), files.lock().unwrap()[&id].clone())
            }
            _ => ("404 No".to_owned(), Vec::new()),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        io.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_up_and_come_down_where_the_server_says() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/", listener.local_addr().unwrap());
    let files = Arc::new(Mutex::new(BTreeMap::new()));
    tokio::spawn(file_server(listener, Arc::clone(&files)));
    let web = Web::new(&base, &Trust::Pin([0; 32])).unwrap();
    let session = Session {
        account: AccountId(1),
        session: SessionId(-7),
        token: Secret::new([0; 32]),
        web_token: WebToken("web".to_owned()),
    };
    for (n, bytes) in [(1, vec![7; 300_000]), (2, Vec::new())] {
        let id = soon(web.upload(&session, bytes.clone().into())).await.unwrap();
        assert_eq!((id, &files.lock().unwrap()[&id.0]), (FileId(-n), &bytes));
        assert_eq!(soon(web.download(&session, id)).await.unwrap(), bytes);
    }
    let unknown = soon(web.download(&session, FileId(9))).await;
    assert!(matches!(unknown, Err(WebError::Status(status, _)) if status == 404), "{unknown:?}");
    let stranger = Session { web_token: WebToken("other".to_owned()), ..session.clone() };
    let refused = soon(web.upload(&stranger, vec![1].into())).await;
    assert!(matches!(refused, Err(WebError::Status(status, _)) if status == 401), "{refused:?}");
    // What is not encrypted does not leave this machine.
    let elsewhere = Web::new("http://192.0.2.1", &Trust::Pin([0; 32])).unwrap();
    assert!(matches!(soon(elsewhere.download(&session, FileId(9))).await, Err(WebError::Url(_))));
}

/// The binary with a Skynet server. Killed when it is dropped.
struct Server {
    child: Child,
    mediator: String,
    skynet: String,
    data: PathBuf,
    log: Receiver<String>,
}

impl Server {
    fn start(data: &Path) -> Self {
        let any = "127.0.0.1:0";
        let mut command =
            heliostat(&["serve", "--data", data.to_str().unwrap(), "--listen", any, "--admin-listen", any]);
        command.args(["--csp-listen", any, "--skynet-listen", any]);
        command.env("HELIOSTAT_LOG", "error,heliostat::chat::skynet=info");
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let (logged, log) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).all(|line| logged.send(line).is_ok()));
        let (mut mediator, mut skynet) = (None, None);
        for line in said.by_ref() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["devices", url, ..] => mediator = Some(url.to_owned()),
                // By its name: that is what its certificate says.
                ["Skynet", tls, ..] => skynet = Some(tls.replace("127.0.0.1", "localhost")),
                ["data", ..] => break,
                _ => {}
            }
        }
        std::thread::spawn(move || said.count());
        let (mediator, skynet) = (mediator.expect("it is ready"), skynet.expect("it has a Skynet server"));
        Self { child, mediator, skynet, data: data.to_owned(), log }
    }

    /// The next link that would have been mailed.
    fn link(&self) -> String {
        loop {
            let line = self.log.recv_timeout(PATIENCE).expect("a mail");
            if let Some((_, link)) = line.split_once("https://") {
                return format!("https://{}", link.split('"').next().unwrap().trim());
            }
        }
    }

    /// The client's binary, which trusts this server, with the password in a file.
    fn client(&self, args: &[&str], password: &str) -> Process {
        let file = self.data.with_extension(format!("{password}.password"));
        std::fs::write(&file, format!("{password}\n")).unwrap();
        let mut command = heliostat(&["skynet"]);
        command.args(args).args(["--data", self.data.to_str().unwrap(), "--password-file", file.to_str().unwrap()]);
        command.stdin(Stdio::null());
        command
    }

    /// Registers and confirms an account; where its pages are.
    fn account(&self, name: &str) -> String {
        let done = self.client(&["register", name, &self.skynet], "pw").output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let link = self.link();
        let mut confirm = heliostat(&["skynet", "confirm", &link, "--data", self.data.to_str().unwrap()]);
        let done = confirm.output().unwrap();
        assert!(done.status.success() && String::from_utf8_lossy(&done.stdout).contains(name), "{done:?}");
        link.split("/confirm/").next().unwrap().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

fn heliostat(args: &[&str]) -> Process {
    let mut command = Process::new(env!("CARGO_BIN_EXE_heliostat"));
    command.args(args).env_remove("HELIOSTAT_CONFIG").env("HELIOSTAT_LOG", "error");
    command
}

/// A client that is typed into. Killed when it is dropped.
struct Typed {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Typed {
    fn start(mut command: Process) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (send, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| send.send(line).is_ok()));
        Self { stdin: child.stdin.take(), child, lines, heard: Vec::new() }
    }

    fn types(&mut self, lines: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(format!("{lines}\n").as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Waits for a line with this in it.
    #[track_caller]
    fn hears(&mut self, what: &str) -> String {
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                panic!("waited for {what:?}; heard {:#?}", self.heard)
            };
            self.heard.push(line.clone());
            if line.contains(what) {
                return line;
            }
        }
    }

    /// The end of its input, and its own: its exit status.
    fn ends(&mut self) -> Option<i32> {
        self.stdin = None;
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.heard.push(line);
        }
        self.child.wait().unwrap().code()
    }

    fn events(&self, name: &str) -> Vec<serde_json::Value> {
        let parsed = self.heard.iter().map(|line| serde_json::from_str(line).expect(line));
        parsed.filter(|it: &serde_json::Value| it["event"] == name).collect()
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

#[test]
fn people_and_scripts_talk_with_the_binary_over_tls_and_through_its_mediator() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"));
    for name in [ALICE, BOB] {
        server.account(name);
    }
    let again = server.client(&["register", ALICE, &server.skynet], "pw").output().unwrap();
    assert!(!again.status.success() && String::from_utf8_lossy(&again.stderr).contains("taken"), "{again:?}");
    let state = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (of_alice, of_bob, tablet) = (state("alice"), state("bob"), state("tablet"));
    let talk =
        |name: &str, server: &str, state: &str| ["talk", name, server, "--state", state].map(str::to_owned).to_vec();
    let start =
        |args: &[String], password: &str| server.client(&args.iter().map(String::as_str).collect::<Vec<_>>(), password);

    // Who is not who it should be, on either side.
    let mut wrong = Typed::start(start(&talk(ALICE, &server.skynet, &of_alice), "wrong"));
    assert_eq!(wrong.ends(), Some(1));
    let mut pinned = start(&talk(ALICE, &server.skynet, &of_alice), "pw");
    pinned.args(["--pin", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="]);
    assert_eq!(Typed::start(pinned).ends(), Some(1));
    let mut plain = start(&talk(ALICE, "plain://192.0.2.1:7", &of_alice), "pw");
    assert_eq!(plain.output().unwrap().status.code(), Some(1));

    let mut bob = Typed::start(start(&talk(BOB, &server.skynet, &of_bob), "pw"));
    bob.hears("-- online as bob@example.com");
    // A script: each line waits for what the one before asks for.
    let mut alice = start(&talk(ALICE, &server.skynet, &of_alice), "pw");
    alice.arg("--json");
    let mut alice = Typed::start(alice);
    alice.types("/contact bob@example.com\nh\u{e9}llo\nsecond");
    assert_eq!(alice.ends(), Some(0), "{:#?}", alice.heard);
    assert_eq!(alice.events("sent").len(), 2);
    bob.hears("alice@example.com: h\u{e9}llo");
    bob.hears("alice@example.com: second");
    bob.types("/to alice@example.com\nwhile you were away");
    bob.hears("-- sent");

    // It comes back with what it knows, and is told what is new, once.
    let history = "/to bob@example.com\n/history";
    for (lines, code, heard) in [(history, Some(0), 1), ("/what", Some(1), 0), ("to nobody", Some(1), 0)] {
        let mut back = start(&talk(ALICE, &server.skynet, &of_alice), "pw");
        back.arg("--json");
        let mut back = Typed::start(back);
        back.types(lines);
        assert_eq!(back.ends(), code, "{lines}: {:#?}", back.heard);
        let messages = back.events("message");
        assert_eq!(messages.len(), heard, "{messages:?}");
        if heard == 1 {
            assert_eq!(messages[0]["text"], "while you were away");
            let history: Vec<_> = back.events("history").iter().map(|it| it["text"].clone()).collect();
            assert_eq!(history, ["h\u{e9}llo", "second", "while you were away"]);
        }
    }

    // Another device of alice's, behind the mediator.
    let mut behind = start(&talk(ALICE, &server.mediator, &tablet), "pw");
    behind.args(["--group-key", &state("group.key"), "--device-id", "2"]);
    let mut behind = Typed::start(behind);
    behind.hears("-- online as alice@example.com");
    assert!(behind.heard.iter().any(|line| line.contains("while you were away")), "{:#?}", behind.heard);
    behind.types("/to bob@example.com\nthrough the mirror");
    bob.hears("alice@example.com: through the mirror");
    bob.types("/quit");
    assert_eq!((behind.ends(), bob.ends()), (Some(0), Some(0)));
    // What is kept belongs to an account on a server, and is taken nowhere else.
    for (name, at) in [(BOB, server.skynet.as_str()), (ALICE, "localhost:1")] {
        let refused = start(&talk(name, at, &of_alice), "pw").output().unwrap();
        // Reports are wrapped for whoever reads them.
        let said = String::from_utf8_lossy(&refused.stderr).replace('\u{2502}', " ");
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            !refused.status.success() && said.contains(&format!("not of {}", if name == BOB { BOB } else { at })),
            "{said}"
        );
    }
    let wrong = start(&talk(ALICE, &server.skynet, &of_alice), "other").output().unwrap();
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(!wrong.status.success() && said.contains("does not open"), "{said}");
}

#[test]
fn a_long_file_lies_beside_its_message() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"));
    let pages: Vec<String> = [ALICE, BOB].iter().map(|name| server.account(name)).collect();
    let state = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let start = |name: &str, password: &str| {
        let state = state(name);
        Typed::start(server.client(&["talk", name, &server.skynet, "--state", &state, "--web", &pages[0]], password))
    };
    let (long, copy) = (state("long.bin"), state("copy.bin"));
    let bytes: Vec<u8> = (0..200_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    std::fs::write(&long, &bytes).unwrap();
    let mut bob = start(BOB, "pw");
    bob.hears("-- online");
    let mut alice = start(ALICE, "pw");
    alice.types(&format!("/contact bob@example.com\n/file {long} look"));
    assert_eq!(alice.ends(), Some(0), "{:#?}", alice.heard);
    let heard = bob.hears("<long.bin, 800000 bytes> look");
    let id = heard.trim_start_matches('[').split(']').next().unwrap();
    bob.types(&format!("/save {id} {copy}"));
    bob.hears("800000 bytes");
    assert_eq!(bob.ends(), Some(0));
    assert_eq!(std::fs::read(copy).unwrap(), bytes);
}
