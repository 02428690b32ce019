//! The store on PostgreSQL: the promise, and what only a server somewhere else can do to it. One test, since starting a server
//! costs a second: each story in a schema of its own, some at a time.

use std::collections::HashMap;
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

#[path = "../common/postgres.rs"]
mod server;

use server::Postgres;

/// Longer than anything takes here.
const LEASE: Duration = Duration::from_secs(10);

/// Where a story is told: a schema of its own.
pub(super) struct Place {
    url: String,
}

impl Place {
    async fn new(server: &str, name: &str) -> Self {
        let (client, connection) = tokio_postgres::connect(server, tokio_postgres::NoTls).await.unwrap();
        let connection = tokio::spawn(connection);
        client.batch_execute(&format!("CREATE SCHEMA {name}")).await.unwrap();
        drop(client);
        connection.await.unwrap().unwrap();
        Self { url: format!("{server}&options=-c%20search_path%3D{name}") }
    }

    async fn node(&self, name: &str, lease: Duration) -> Arc<PostgresStore> {
        node_at(&self.url, name, lease).await
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
                if !tenures.contains_key(&group) {
                    tenures.insert(group, taken(&*self.node, group).await);
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
    let url = &server.database("stories");
    macro_rules! stories {
        ($($story:ident)*) => { vec![$({
            let story: Story<'_> = (stringify!($story), Box::new(|place| Box::pin($story(place))));
            story
        }),*] };
    }
    let mut stories = stories! {
        it_says_the_same_as_the_one_in_memory
    };
    stories.extend(promises);
    // Most of them wait for the database.
    let told = futures_util::stream::iter(stories).map(async |(name, story)| {
        println!("begins: {name}");
        let place = Place::new(url, name).await;
        let told = AssertUnwindSafe(story(place)).catch_unwind().await;
        println!("is told: {name}");
        told.err().map(|_| name)
    });
    let failed: Vec<_> = told.buffer_unordered(6).filter_map(std::future::ready).collect().await;
    assert!(failed.is_empty(), "on PostgreSQL: {failed:?}");
}

async fn it_says_the_same_as_the_one_in_memory(place: Place) {
    let node = place.node("a", LEASE).await;
    let store = Taking::new(Arc::clone(&node));
    let here = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
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
    node.close().await.unwrap();
}
