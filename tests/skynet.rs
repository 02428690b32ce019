//! The Skynet chat server over real sockets, each story on SQLite and on PostgreSQL.
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

#[path = "skynet/promises.rs"]
mod promises;
#[path = "skynet/stories.rs"]
mod stories;
#[path = "skynet/world.rs"]
#[allow(dead_code, reason = "a world has more in it")]
mod world;

use std::panic::AssertUnwindSafe;

use futures_util::future::LocalBoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use heliostat::chat::skynet::store::Place;
use world::{Ground, Postgres};

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
            let stories: Vec<LocalBoxFuture<'_, Option<&str>>> = vec![$(Box::pin(async move {
                println!("begins: {}", stringify!($story));
                let dir = tempfile::tempdir().unwrap();
                let story = stories::$story(Ground::new(dir.path(), server.database(stringify!($story))));
                let told = AssertUnwindSafe(story).catch_unwind().await;
                println!("is told: {}", stringify!($story));
                told.err().map(|_| stringify!($story))
            })),*];
            // One that fails does not keep the others from being told.
            let told: Vec<_> = futures_util::stream::iter(stories).buffer_unordered(6).collect().await;
            let failed: Vec<_> = told.into_iter().flatten().collect();
            assert!(failed.is_empty(), "on PostgreSQL: {failed:?}");
        }
    };
}

stories! {
    registering_confirming_and_logging_in
    a_session_comes_back_and_hears_what_it_missed
    a_session_is_taken_over
    two_become_friends_and_their_keys_meet
    chat_reaches_every_device_and_receipts_come_back
    loopback_stays_at_home_and_no_sender_sync_leaves_it
    a_group_lives_and_ends
    an_administrator_who_is_late_has_to_begin_again
    the_invisible_are_seen_by_administrators_alone
    a_password_changes_once
    a_name_changes_and_the_old_one_is_an_alias_until_the_password_follows
    who_was_logged_in_could_have_mails_sent_to_anybody
    a_store_that_fails_has_said_nothing_and_ends_everybody
    one_process_serves_a_database_and_with_its_key
    a_damaged_row_was_the_end_of_everybody
    who_does_not_read_is_disconnected_and_finds_everything
    a_second_change_of_name_locked_the_account_out
    an_account_is_deleted_and_its_contacts_hear_of_it
    blocking_archives_and_unblocking_opens_again
    messages_are_requested_by_bounds_and_counts
    presence_is_the_accounts_and_actions_are_the_sessions
    who_was_there_at_a_crash_was_there_for_ever
    searching_finds_names_and_nicknames_and_only_the_newest_is_kept
    what_is_out_of_the_protocol_ends_that_connection_alone
    nothing_is_lost_or_doubled_between_sync_and_live
    of_two_who_create_the_same_channel_one_does
    a_restart_loses_nothing_that_was_answered
    what_is_too_old_is_forgotten
    sessions_were_there_for_ever_and_any_number_of_them
    who_does_not_acknowledge_is_woken_once_until_it_comes
    who_is_strict_takes_sealed_messages_with_their_keys_only
    what_is_promised_holds_whatever_is_said
    who_finds_no_place_is_dropped_and_comes_again
    both_versions_of_tls_are_spoken_and_plain_where_it_is_said
    files_are_for_those_who_see_a_message_that_names_them
    uploads_are_gone_on_with_checked_and_bounded
    files_go_when_nobody_can_have_them_any_more
}

/// 200 sessions in 20 groups talk for `HELIOSTAT_LOAD_SECONDS` (10 unless set), as fast as they are answered. Prints what it
/// measured: see docs/skynet.md.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes its time; run it with --release"]
async fn load() {
    let dir = tempfile::tempdir().unwrap();
    let seconds = std::env::var("HELIOSTAT_LOAD_SECONDS").map_or(10, |it| it.parse().unwrap());
    stories::load(Ground::new(dir.path(), Place::Sqlite), std::time::Duration::from_secs(seconds)).await;
}
