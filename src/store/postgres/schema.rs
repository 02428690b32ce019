//! The tables, and how they come to be.
//!
//! They lie in whichever schema the session's `search_path` names first, so several mediators can share a database. Whoever makes or
//! changes them holds the one row of `heliostat_schema`, so nodes that start together do it once.
//!
//! Numbers of 64 bits go in and out as the same bits; those that are compared by the database stay below 2^63.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::PostgresError;
use super::link::told;

/// What makes each version of the schema out of the one before.
const MIGRATIONS: [&str; 1] = [VERSION_1];

/// * A group's id is the beginning of every key: one look-up finds a row, and an engine that spreads its tables over machines
///   can keep a group together.
/// * `nodes` has the leases: one row renews all groups of a node. It is locked by every commit of that node ([`super::engine`]).
/// * `owners` says whose a group is. A group whose node has no row in `nodes`, or one that has expired, is anybody's. Node 0 is
///   never there: it stands for groups that were left with slots that are marked connected.
/// * The partial indexes hold what is asked for across groups.
const VERSION_1: &str = "
CREATE SEQUENCE node_ids;
CREATE SEQUENCE epochs;
CREATE TABLE nodes (
    node BIGINT PRIMARY KEY,
    name TEXT NOT NULL,
    address TEXT NOT NULL,
    expires TIMESTAMPTZ NOT NULL
);
CREATE TABLE owners (
    device_group_id BYTEA PRIMARY KEY,
    node BIGINT NOT NULL,
    epoch BIGINT NOT NULL,
    wanted BOOLEAN NOT NULL DEFAULT FALSE
);
CREATE INDEX owners_node ON owners (node);
CREATE INDEX owners_wanted ON owners (node) WHERE wanted;
CREATE TABLE groups (
    device_group_id BYTEA PRIMARY KEY,
    seq_reserved BIGINT NOT NULL,
    last_timestamp_ms BIGINT NOT NULL,
    shared_device_data BYTEA NOT NULL,
    seal BYTEA NOT NULL
);
CREATE TABLE slots (
    device_group_id BYTEA NOT NULL,
    device BIGINT NOT NULL,
    persistent BOOLEAN NOT NULL,
    connected BOOLEAN NOT NULL,
    last_disconnect_ms BIGINT NOT NULL,
    device_info BYTEA NOT NULL,
    since BIGINT NOT NULL,
    cursor BIGINT NOT NULL,
    acked BYTEA NOT NULL,
    acked_unseen BYTEA NOT NULL,
    issued BIGINT NOT NULL,
    counted_through BIGINT NOT NULL,
    held_pending BIGINT NOT NULL,
    held_entries BIGINT NOT NULL,
    held_bytes BIGINT NOT NULL,
    seal BYTEA NOT NULL,
    PRIMARY KEY (device_group_id, device)
);
CREATE INDEX slots_due ON slots (persistent, last_disconnect_ms) WHERE NOT connected;
CREATE TABLE log (
    device_group_id BYTEA NOT NULL,
    seq BIGINT NOT NULL,
    origin BIGINT NOT NULL,
    timestamp_ms BIGINT NOT NULL,
    envelope BYTEA NOT NULL,
    seal BYTEA NOT NULL,
    PRIMARY KEY (device_group_id, seq)
);
";

/// Its one row counts the migrations that were done.
const LEDGER: &str = "CREATE TABLE IF NOT EXISTS heliostat_schema (
    one BOOLEAN PRIMARY KEY CHECK (one), version BIGINT NOT NULL)";
const LEDGER_ROW: &str = "INSERT INTO heliostat_schema VALUES (TRUE, 0) ON CONFLICT DO NOTHING";
/// How often the ledger is asked for when another node is just making it.
const ATTEMPTS: usize = 10;

/// Brings the tables to the version this program knows. Others that want the same wait.
pub(super) async fn prepare(client: &mut Client) -> Result<(), PostgresError> {
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    make_ledger(client).await?;
    let tx = client.transaction().await.map_err(failed)?;
    let row = tx.query_one("SELECT version FROM heliostat_schema FOR UPDATE", &[]).await.map_err(failed)?;
    let found: i64 = row.try_get(0).map_err(failed)?;
    if found > known {
        return Err(PostgresError::Newer { found, known });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for (version, migration) in (1_i64..).zip(MIGRATIONS).skip(done) {
        tx.batch_execute(migration).await.map_err(|error| match error.code() {
            Some(&SqlState::DUPLICATE_TABLE) => PostgresError::NotOurs,
            _ => failed(error),
        })?;
        tx.execute("UPDATE heliostat_schema SET version = $1", &[&version]).await.map_err(failed)?;
    }
    tx.commit().await.map_err(failed)
}

/// `IF NOT EXISTS` looks before it makes, so of two that make it at once one may fail, and finds it then.
async fn make_ledger(client: &Client) -> Result<(), PostgresError> {
    let mut attempts = 0;
    loop {
        let made = async {
            client.batch_execute(LEDGER).await?;
            client.batch_execute(LEDGER_ROW).await
        };
        attempts += 1;
        match made.await {
            Ok(()) => return Ok(()),
            Err(error) if attempts < ATTEMPTS && is_race(&error) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// A table is a relation, a type and rows of catalogues: whichever of them the other made first.
fn is_race(error: &tokio_postgres::Error) -> bool {
    let races = [SqlState::UNIQUE_VIOLATION, SqlState::DUPLICATE_TABLE, SqlState::DUPLICATE_OBJECT];
    error.code().is_some_and(|code| races.contains(code))
}

fn failed(error: tokio_postgres::Error) -> PostgresError {
    PostgresError::Engine { reason: told(&error) }
}
