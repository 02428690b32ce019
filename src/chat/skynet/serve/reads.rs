//! What is only read is read by the connection that asks: messages between bounds, and searches (spec 4.10, 4.12). However much
//! there is to look at, nobody else waits for it.
//!
//! Others are heard meanwhile, so an answer may hold what is to be said live and was not yet. It has to stand behind that in the line, or
//! a client that knows one number only, the highest, would miss what is between: the connection asks the task that decides whether it has
//! said what it had decided ([`super::actor::Mail::AllSaid`]), and then puts the answer there.

use tokio::sync::Semaphore;

use super::outbox::Item;
use super::scene::{framed, sync};
use crate::chat::skynet::store::{Listed, Store, StoreError};
use crate::chat::skynet::wire::{AccountId, ChannelId, Found, MessageId, ToClient};

/// Accounts that a search finds, at most.
const FOUND_MAX: usize = 100;
/// Searches at a time: the others leave the database to those who catch up.
const SEARCHES_MAX: usize = 2;

/// See the top of this file.
#[derive(Debug)]
pub(super) struct Reads {
    store: Store,
    searches: Semaphore,
}

impl Reads {
    pub(super) fn new(store: Store) -> Self {
        Self { store, searches: Semaphore::new(SEARCHES_MAX) }
    }

    pub(super) async fn messages(
        &self,
        account: AccountId,
        channel: ChannelId,
        (after, before): (MessageId, MessageId),
        max_count: u16,
    ) -> Result<Vec<Item>, StoreError> {
        // From a bound on the oldest are wanted; without one, somebody scrolls back, and wants the newest.
        let newest = after.is_none() && max_count != 0;
        let bounds = (
            if after.is_none() { MessageId(i64::MIN) } else { after },
            if before.is_none() { MessageId(i64::MAX) } else { before },
        );
        let max = if max_count == 0 { i64::from(i32::MAX) } else { i64::from(max_count) };
        let listed = self.store.read().await?.between(account, channel, bounds, max, newest).await?;
        Ok(sync(account, &[], listed, false))
    }

    /// With `forward`, the public profiles of those who are found follow.
    pub(super) async fn search(&self, account: AccountId, query: &str, forward: bool) -> Result<Vec<Item>, StoreError> {
        let query = query.to_lowercase();
        let found = match (query.is_empty(), self.searches.acquire().await) {
            // Never closed.
            (true, _) | (_, Err(_)) => Vec::new(),
            (false, Ok(_place)) => self.store.search(&query, account, FOUND_MAX).await?,
        };
        let mut profiles = Listed::default();
        if forward && !found.is_empty() {
            let mut work = self.store.read().await?;
            for (account, _) in &found {
                // Each may be another one when its turn comes.
                profiles.ids.extend(work.public_profile(*account).await?);
            }
            profiles.ids.sort_unstable();
        }
        let found = found.into_iter().map(|(account, name)| Found { account, name }).collect();
        let answer = framed(&ToClient::SearchAccountResponse { found }).map(Item::Frame);
        let profiles = if forward { sync(account, &[], profiles, true) } else { Vec::new() };
        Ok(answer.into_iter().chain(profiles).collect())
    }
}
