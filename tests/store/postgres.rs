//! The store on PostgreSQL: the promise, and what only a server somewhere else can do to it. One test, since starting a server
//! costs a second: each story in a schema of its own, some at a time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, LocalBoxFuture};
use futures_util::{FutureExt as _, StreamExt as _};
use heliostat::group::record::{Page, Seq, Snapshot, Write};
use heliostat::store::postgres::Settings;
use heliostat::store::{Census, MemoryStore, PostgresStore, Store, StoreError, Taken, Tenure};
use heliostat::time::Clock;
use heliostat::wire::d2m::DeviceGroupId;
use proptest::test_runner::{Config, TestRunner};

#[path = "faults.rs"]
mod faults;
#[path = "relay.rs"]
mod relay;
#[path = "../common/postgres.rs"]
mod server;

use faults::*;
use relay::Relay;
use server::Postgres;

/// Longer than anything takes here.
const LEASE: Duration = Duration::from_secs(10);
/// For a story.
const TOO_LONG: Duration = Duration::from_secs(60);

/// Where a story is told: a schema of its own.
pub(super) struct Place {
    server: Arc<Postgres>,
    name: &'static str,
    url: String,
}

impl Place {
    async fn new(server: &Arc<Postgres>, database: &str, name: &'static str) -> Self {
        let (client, connection) = tokio_postgres::connect(database, tokio_postgres::NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        client.batch_execute(&format!("CREATE SCHEMA {name}")).await.unwrap();
        drop(client);
        connection.await.unwrap().unwrap();
        Self { server: Arc::clone(server), name, url: format!("{database}&options=-c%20search_path%3D{name}") }
    }

    async fn node(&self, name: &str, lease: Duration) -> Arc<PostgresStore> {
        node_at(&self.url, name, lease).await
    }

    /// A way to the server that can be disturbed.
    async fn relay(&self) -> Relay {
        Relay::to(&self.server.socket()).await
    }

    /// The server behind TLS: at which port, and for how long.
    async fn encrypted(&self, certified: rustls::ServerConfig) -> (u16, tokio_util::sync::DropGuard) {
        relay::encrypting(&self.server.socket(), certified).await
    }

    async fn restart(&self) {
        let server = Arc::clone(&self.server);
        tokio::task::spawn_blocking(move || server.restart()).await.unwrap();
    }
}

async fn node_at(url: &str, name: &str, lease: Duration) -> Arc<PostgresStore> {
    let settings = Settings {
        url: url.to_owned(),
        name: name.to_owned(),
        address: format!("{name}:1"),
        lease,
        clock: Clock::system(),
    };
    PostgresStore::open(settings).await.unwrap()
}

/// A node that takes each group when something is first to be kept of it, and keeps it.
#[derive(Debug)]
struct Taking {
    node: Arc<PostgresStore>,
    tenures: tokio::sync::Mutex<HashMap<DeviceGroupId, Tenure>>,
}

impl Taking {
    fn new(node: Arc<PostgresStore>) -> Self {
        Self { node, tenures: tokio::sync::Mutex::default() }
    }
}

impl Store for Taking {
    fn load(&self, group: DeviceGroupId) -> BoxFuture<'_, Result<Option<Snapshot>, StoreError>> {
        self.node.load(group)
    }

    fn commit(&self, group: DeviceGroupId, writes: Vec<Write>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            {
                let mut tenures = self.tenures.lock().await;
                if let Entry::Vacant(vacant) = tenures.entry(group) {
                    vacant.insert(taken(&self.node, group).await);
                }
            }
            self.node.commit(group, writes).await
        })
    }

    fn page(&self, group: DeviceGroupId, after: Seq, to: Seq, most: usize) -> BoxFuture<'_, Result<Page, StoreError>> {
        self.node.page(group, after, to, most)
    }

    fn due(&self, a: u64, b: Option<u64>, most: usize) -> BoxFuture<'_, Result<Vec<DeviceGroupId>, StoreError>> {
        self.node.due(a, b, most)
    }

    fn census(&self, after: Option<DeviceGroupId>, most: usize) -> BoxFuture<'_, Result<Census, StoreError>> {
        self.node.census(after, most)
    }
}

async fn taken(store: &PostgresStore, group: DeviceGroupId) -> Tenure {
    match store.take(group).await.unwrap() {
        Taken::Here(tenure) => tenure,
        other => panic!("{other:?}"),
    }
}

/// A promise, on a node of its own.
pub(super) async fn promise(place: Place, told: impl AsyncFnOnce(&dyn Store)) {
    let node = place.node("a", LEASE).await;
    told(&Taking::new(Arc::clone(&node))).await;
    node.close().await.unwrap();
}

pub(super) type Story<'a> = (&'static str, Box<dyn FnOnce(Place) -> LocalBoxFuture<'a, ()> + 'a>);

/// Tells them, and those of this file.
pub(super) async fn tell(promises: Vec<Story<'_>>) {
    let Some(server) = Postgres::start() else {
        assert!(std::env::var_os("HELIOSTAT_REQUIRE_POSTGRES").is_none(), "PostgreSQL is not installed");
        println!("NOT RUN: PostgreSQL is not installed");
        return;
    };
    let (url, server) = (&server.database("stories"), &Arc::new(server));
    macro_rules! stories {
        ($($story:ident)*) => { vec![$({
            let story: Story<'_> = (stringify!($story), Box::new(|place| Box::pin($story(place))));
            story
        }),*] };
    }
    let mut stories = stories! {
        it_says_the_same_as_the_one_in_memory
        a_group_is_one_nodes_at_a_time
        a_node_that_was_buried_hears_it_with_its_next_commit
        what_became_of_a_commit_is_decided_before_the_group_is_taken_again
        nothing_that_was_answered_is_lost_with_a_connection
        one_bad_commit_among_many_fails_alone
        who_wants_a_group_gets_it
        groups_of_a_node_that_is_gone_fall_due
        nodes_that_begin_together_make_the_tables_once
        a_changed_row_is_found_on_reading
        what_is_not_certified_is_not_spoken_to
    };
    stories.extend(promises);
    let tell = async |(name, story): Story<'_>| {
        println!("begins: {name}");
        let (clock, began) = (Clock::system(), Clock::system().now().monotonic);
        let place = Place::new(server, url, name).await;
        let told = tokio::time::timeout(TOO_LONG, AssertUnwindSafe(story(place)).catch_unwind()).await;
        println!("is told: {name}, {:?}", clock.now().monotonic.saturating_sub(began));
        (!matches!(told, Ok(Ok(())))).then_some(name)
    };
    // Most of them wait for the database.
    let together = futures_util::stream::iter(stories).map(&tell).buffer_unordered(6);
    let mut failed: Vec<_> = together.filter_map(std::future::ready).collect().await;
    // Some need a renewal in time, of a short lease, and one the server for itself.
    let alone = stories! {
        a_node_that_hung_for_longer_than_its_lease_keeps_nothing
        a_lease_is_kept_by_the_databases_clock_alone
        a_restart_of_the_server_loses_nothing_and_ends_nobody
    };
    for story in alone {
        failed.extend(tell(story).await);
    }
    assert!(failed.is_empty(), "on PostgreSQL: {failed:?}");
}

async fn it_says_the_same_as_the_one_in_memory(place: Place) {
    let node = place.node("a", LEASE).await;
    let store = Taking::new(Arc::clone(&node));
    let here = tokio::runtime::Handle::current();
    // The other stories go on meanwhile.
    let compared = tokio::task::spawn_blocking(move || {
        let mut runner = TestRunner::new(Config { cases: 24, failure_persistence: None, ..Config::default() });
        let same = runner.run(&super::any_commits(), |commits| {
            here.block_on(async {
                let memory = MemoryStore::new();
                for n in 1..=3 {
                    store.commit(super::id(n), vec![Write::Forget]).await.unwrap();
                }
                for (n, writes) in commits {
                    let answers =
                        (store.commit(super::id(n), writes.clone()).await, memory.commit(super::id(n), writes).await);
                    proptest::prop_assert_eq!(answers.0, answers.1);
                }
                proptest::prop_assert_eq!(super::told(&store).await, super::told(&memory).await);
                Ok(())
            })
        });
        same.unwrap_or_else(|error| panic!("{error}"));
    });
    compared.await.unwrap();
    node.close().await.unwrap();
}
