//! The DM server over real sockets, each story on SQLite and on PostgreSQL.
//!
//! PostgreSQL is started from the distribution's package. Where there is none, its stories are not run and say so;
//! `HELIOSTAT_REQUIRE_POSTGRES=1` makes that a failure.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    missing_debug_implementations,
    reason = "a test may panic"
)]

#[path = "common/binary.rs"]
mod binary;
mod common;
#[path = "dm/doors.rs"]
mod doors;
#[path = "dm/load.rs"]
mod load;
#[path = "common/postgres.rs"]
mod postgres;
#[path = "dm/stories.rs"]
mod stories;
#[path = "dm/world.rs"]
mod world;

use futures_util::StreamExt as _;
use futures_util::future::LocalBoxFuture;
use heliostat::chat::dm::store::Place;
use postgres::Postgres;
use world::Ground;

/// Each story as a test on SQLite, and all of them as one on PostgreSQL, whose start costs seconds.
macro_rules! stories {
    ($($story:ident)*) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $story() {
                    let dir = tempfile::tempdir().unwrap();
                    super::stories::$story(super::Ground::new(dir.path(), super::Place::Sqlite)).await;
                }
            )*
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn postgres() {
            let Some(server) = Postgres::start() else {
                assert!(std::env::var_os("HELIOSTAT_REQUIRE_POSTGRES").is_none(), "PostgreSQL is not installed");
                println!("NOT RUN: PostgreSQL is not installed");
                return;
            };
            let server = &server;
            // Some at a time: most of them wait for the database.
            let stories: Vec<LocalBoxFuture<'_, ()>> = vec![$(Box::pin(async move {
                println!("begins: {}", stringify!($story));
                let dir = tempfile::tempdir().unwrap();
                let place = Place::Postgres(server.database(stringify!($story)));
                stories::$story(Ground::new(dir.path(), place)).await;
                println!("is told: {}", stringify!($story));
            })),*];
            futures_util::stream::iter(stories).buffer_unordered(6).collect::<()>().await;
        }
    };
}

stories! {
    registering_and_logging_in_both_ways
    a_wrong_answer_uses_the_challenge_up_and_ten_lock_the_connection
    profiles_are_seen_by_those_who_are_logged_in
    friends_are_made_refused_blocked_and_lost
    a_dm_of_two_needs_friendship_and_is_made_once
    whom_a_group_is_for_and_who_sees_it
    a_key_is_delivered_until_somebody_stayed_who_had_it
    messages_are_seen_changed_pinned_and_reacted_to_by_members_alone
    a_history_has_no_gap_and_nothing_twice
    scheduled_messages_are_sent_and_deleted_in_their_time
    what_came_due_while_nobody_was_here_is_done_before_anybody_comes
    a_warning_that_nobody_heard_is_repeated_at_the_next_login
    a_schedule_does_not_outlive_the_right_to_speak
    calls_are_joined_left_and_lost
    leaving_ends_access_and_the_last_one_takes_everything
    several_connections_of_one_user_hear_the_same
    a_thousand_messages_at_once_stay_in_order
}

/// 500 connections in 50 groups say 200 messages a second for `HELIOSTAT_LOAD_SECONDS` (60 unless set). Prints what it
/// measured: see docs/dm.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes its time; run it with --release"]
async fn load_of_500_connections() {
    let dir = tempfile::tempdir().unwrap();
    let seconds = std::env::var("HELIOSTAT_LOAD_SECONDS").map_or(60, |it| it.parse().unwrap());
    load::load(Ground::new(dir.path(), Place::Sqlite), std::time::Duration::from_secs(seconds)).await;
}
