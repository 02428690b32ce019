//! Connections to the server.
//!
//! A node has four, because what waits on one of them must not hold up the others: one that keeps ([`super::engine`]), one that
//! renews the lease ([`super::keeper`]), one that takes groups and gives them up, which may wait for another node's commits, and
//! one that reads. The last two are shared by whoever asks: requests are sent at once, one behind the other, and answered in that
//! order. A connection that broke is made anew by whoever needs it next.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio_postgres::config::Config;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row, Statement};

use super::tls::Tls;
use super::{PostgresError, StoreError};

/// What goes out with a statement.
pub(super) type Param<'a> = &'a (dyn ToSql + Sync);

/// How long making a connection may take, on one of the server's addresses.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an answer may take, however long the lease is: whoever watches the process asks it as often as every few seconds.
const PATIENCE_MAX: Duration = Duration::from_secs(5);
/// A transaction of ours sends everything at once. One that is open and silent belongs to a node or a network that hangs, and its locks
/// are waited for by whoever takes over.
const SILENT_IN_TRANSACTION_MS: u32 = 2_000;
/// How long a lock is waited for.
const LOCK_MS: u32 = 5_000;

/// Where the server is, and how it is spoken to.
#[derive(Debug)]
pub(super) struct Server {
    config: Config,
    tls: Tls,
    /// How long an answer may take.
    pub(super) patience: Duration,
}

impl Server {
    /// Understands a URL as `libpq` does, with `sslrootcert` for a file of authorities; otherwise the system's are trusted. A
    /// certificate is checked whenever TLS is spoken.
    pub(super) fn new(url: &str, lease: Duration) -> Result<Self, PostgresError> {
        let patience = lease.min(PATIENCE_MAX);
        let (url, authorities) = understood(url);
        // What is wrong is not repeated: the URL may hold a password, and a broken one may hold it anywhere.
        let mut config: Config = url.parse().map_err(|_| PostgresError::Url)?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(PostgresError::Url);
        }
        config
            .connect_timeout(config.get_connect_timeout().copied().unwrap_or(CONNECT))
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3)
            .tcp_user_timeout(patience);
        if config.get_application_name().is_none() {
            config.application_name("heliostat");
        }
        let tls = Tls::trusting(authorities.as_deref().map(Path::new))?;
        Ok(Self { config, tls, patience })
    }

    /// Makes a connection, driven by this runtime, and prepares `statements` on it.
    pub(super) async fn connect(&self, statements: &[&'static str]) -> Result<Session, Error> {
        let (client, connection) = self.config.connect(self.tls.clone()).await?;
        let driver = Driver(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(reason = told(&error), "a connection to the database ended");
            }
        }));
        let statement_ms = self.patience.as_millis();
        // A role or a database may be set to answer commits that no disk has; never so for ours. Everything is found by its key, and
        // a plan that was made while a table was small would go on reading all of it.
        client
            .batch_execute(&format!(
                "SET client_min_messages = warning; SET statement_timeout = {statement_ms}; SET lock_timeout = {LOCK_MS};
                 SET idle_in_transaction_session_timeout = {SILENT_IN_TRANSACTION_MS};
                 SET default_transaction_isolation = 'read committed'; SET enable_seqscan = off;
                 SELECT set_config('synchronous_commit', 'on', FALSE)
                 WHERE current_setting('synchronous_commit') IN ('off', 'local');"
            ))
            .await?;
        let prepared = futures_util::future::join_all(statements.iter().map(|sql| client.prepare(sql))).await;
        let mut session = Session { client, statements: HashMap::new(), _driver: driver };
        for (sql, statement) in statements.iter().zip(prepared) {
            session.statements.insert(sql, statement?);
        }
        Ok(session)
    }
}

/// Takes out of a URL what the library has no word for: the file of authorities, and a host before the path where another one stands
/// among the parameters and goes before it.
fn understood(url: &str) -> (String, Option<String>) {
    let Some((front, query)) = url.split_once('?') else { return (url.to_owned(), None) };
    let is = |pair: &&str, name: &str| pair.split_once('=').is_some_and(|(it, _)| it == name);
    let pairs: Vec<&str> = query.split('&').collect();
    let authorities = pairs.iter().find(|pair| is(pair, "sslrootcert")).and_then(|pair| pair.split_once('='));
    let authorities = authorities.map(|(_, path)| path.replace("%2F", "/").replace("%2f", "/"));
    let verifying = ["sslmode=verify-full", "sslmode=verify-ca"];
    let rest = pairs.iter().filter(|pair| !is(pair, "sslrootcert"));
    let rest: Vec<&str> = rest.map(|pair| if verifying.contains(pair) { "sslmode=require" } else { pair }).collect();
    let mut front = front.to_owned();
    if pairs.iter().any(|pair| is(pair, "host"))
        && let Some((scheme, behind)) = front.split_once("://")
    {
        let (authority, path) = behind.split_once('/').map_or((behind, ""), |(authority, path)| (authority, path));
        let user = authority.rsplit_once('@').map_or(String::new(), |(user, _)| format!("{user}@"));
        front = format!("{scheme}://{user}/{path}");
    }
    (format!("{front}?{}", rest.join("&")), authorities)
}

/// One connection. Ends at once when it is dropped, whatever was on its way.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    statements: HashMap<&'static str, Statement>,
    _driver: Driver,
}

#[derive(Debug)]
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// Sends a statement as soon as it is polled; what it answers with.
    pub(super) async fn query(&self, sql: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, Error> {
        match self.statements.get(sql) {
            Some(statement) => self.client.query(statement, params).await,
            None => self.client.query(sql, params).await,
        }
    }

    /// The same; how many rows it changed.
    pub(super) async fn execute(&self, sql: &'static str, params: &[Param<'_>]) -> Result<u64, Error> {
        match self.statements.get(sql) {
            Some(statement) => self.client.execute(statement, params).await,
            None => self.client.execute(sql, params).await,
        }
    }
}

/// A connection that is shared, and made again when it broke.
#[derive(Debug)]
pub(super) struct Link {
    server: Arc<Server>,
    statements: &'static [&'static str],
    session: Mutex<Option<Arc<Session>>>,
    is_closed: AtomicBool,
}

impl Link {
    pub(super) fn new(server: Arc<Server>, statements: &'static [&'static str]) -> Self {
        Self { server, statements, session: Mutex::default(), is_closed: AtomicBool::new(false) }
    }

    /// Asks something that may be asked twice: once more on a new connection when the old one had broken.
    pub(super) async fn ask<T, F: Future<Output = Result<T, Error>>>(
        &self,
        question: impl Fn(Arc<Session>) -> F,
    ) -> Result<T, StoreError> {
        let mut again = true;
        let silent = |_| StoreError::Failed("the database does not answer".to_owned());
        loop {
            // Those who wait while another makes the connection do not wait for longer than that one.
            let session = tokio::time::timeout(self.server.patience, self.session()).await.map_err(silent)??;
            let asked = tokio::time::timeout(self.server.patience, question(Arc::clone(&session))).await;
            let error = match asked {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => error,
                Err(late) => {
                    self.give_up(&session).await;
                    return Err(silent(late));
                }
            };
            if error.as_db_error().is_none() || session.client.is_closed() {
                self.give_up(&session).await;
                if std::mem::take(&mut again) {
                    continue;
                }
            }
            return Err(StoreError::Failed(told(&error)));
        }
    }

    async fn session(&self) -> Result<Arc<Session>, StoreError> {
        let mut kept = self.session.lock().await;
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        if let Some(session) = kept.as_ref().filter(|session| !session.client.is_closed()) {
            return Ok(Arc::clone(session));
        }
        let made = self.server.connect(self.statements).await;
        let session = Arc::new(made.map_err(|error| StoreError::Failed(told(&error)))?);
        *kept = Some(Arc::clone(&session));
        Ok(session)
    }

    /// Lets others make a new one, unless they have.
    async fn give_up(&self, session: &Arc<Session>) {
        let mut kept = self.session.lock().await;
        if kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, session)) {
            *kept = None;
        }
    }

    /// Answers whoever asks from now on with [`StoreError::Closed`].
    pub(super) async fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        *self.session.lock().await = None;
    }
}

/// An error with its causes: the library's own words say only of which kind it is.
pub(super) fn told(error: &Error) -> String {
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        cause = inner.source();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_library_has_no_word_for_is_taken_out_of_the_url() {
        for (url, expected, authorities) in [
            ("postgres://a:b@h/d", "postgres://a:b@h/d", None),
            (
                "postgres://a:b@h/d?sslmode=verify-full&sslrootcert=%2Fca.pem",
                "postgres://a:b@h/d?sslmode=require",
                Some("/ca.pem"),
            ),
            ("postgres://a:b@h:5/d?host=/run/pg&port=6", "postgres://a:b@/d?host=/run/pg&port=6", None),
        ] {
            assert_eq!(understood(url), (expected.to_owned(), authorities.map(str::to_owned)), "{url}");
        }
    }

    #[test]
    fn no_error_repeats_a_password() {
        let lease = Duration::from_secs(10);
        for url in
            ["postgres://a:hunter2@h/d?what=hunter2", "postgres://a:hunter2@", "hunter2", "postgres://a:hunter2@h:x/"]
        {
            let error = Server::new(url, lease).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let server = Server::new("postgres://a:hunter2@h/d", lease).unwrap();
        assert!(!format!("{server:?}").contains("hunter2"), "{server:?}");
    }
}
