//! Who is still running, and how everybody is asked to stop.
//!
//! Stopping has two halves: the token asks, the tracker waits. A server that is asked to stop ends its sessions with a
//! farewell each, and its process must not end before the last of them is out; nor may one peer that never answers keep it
//! for ever. Hence [`Tasks::finish`] has a bound and says how many were left behind.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tasks that are stopped and waited for together. Clones are handles of the same set.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    pulse: Pulse,
}

/// Whether a loop still turns: asked from outside, answered by the loop itself. Clones are handles of the same one.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Beat>);

#[derive(Debug, Default)]
struct Beat {
    asked: Notify,
    answered: Notify,
}

impl Pulse {
    /// Waits until the loop turned since; for ever, when it does not.
    pub async fn beats(&self) {
        self.0.asked.notify_one();
        self.0.answered.notified().await;
    }

    /// For the loop: waits until it is asked. Safe to drop while waiting.
    pub async fn asked(&self) {
        self.0.asked.notified().await;
    }

    /// For the loop: it turns.
    pub fn answer(&self) {
        self.0.answered.notify_one();
    }
}

/// Time was up while tasks were still running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{left} tasks were still running after {} s", within.as_secs())]
pub struct Unfinished {
    /// How many were left.
    pub left: usize,
    /// How long they were waited for.
    pub within: Duration,
}

impl Tasks {
    /// An empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task that [`Self::finish`] waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send,
    {
        self.tracker.spawn(task)
    }

    /// What waits for tasks, for those who start them elsewhere.
    #[must_use]
    pub const fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Whether the loop among these tasks still turns.
    #[must_use]
    pub const fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// Cancelled when everybody is to stop.
    #[must_use]
    pub const fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Asks everybody to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until everybody was asked to stop.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// Asks everybody to stop and waits for the last one, but no longer than `within`.
    ///
    /// # Errors
    /// [`Unfinished`] when time was up first.
    pub async fn finish(&self, within: Duration) -> Result<(), Unfinished> {
        self.stop();
        self.tracker.close();
        tokio::time::timeout(within, self.tracker.wait())
            .await
            .map_err(|_| Unfinished { left: self.tracker.len(), within })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn finish_waits_for_the_farewells() {
        let tasks = Tasks::new();
        let (said, heard) = tokio::sync::oneshot::channel();
        let mine = tasks.clone();
        tasks.spawn(async move {
            mine.stopping().await;
            tokio::time::sleep(Duration::from_secs(3)).await;
            said.send("goodbye").unwrap();
        });
        assert_eq!(tasks.finish(Duration::from_secs(5)).await, Ok(()));
        assert_eq!(heard.await, Ok("goodbye"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_hangs_has_no_pulse() {
        let pulse = Pulse::default();
        let turns = async {
            for _ in 0..3 {
                pulse.asked().await;
                pulse.answer();
            }
            std::future::pending::<()>().await;
        };
        let feel = async || tokio::time::timeout(Duration::from_secs(60), pulse.beats()).await.is_ok();
        tokio::select! {
            () = turns => {}
            felt = async { [feel().await, feel().await, feel().await, feel().await] } => {
                assert_eq!(felt, [true, true, true, false]);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_ends_is_left_behind_and_counted() {
        let tasks = Tasks::new();
        tasks.spawn(std::future::pending::<()>());
        let within = Duration::from_secs(5);
        assert_eq!(tasks.finish(within).await, Err(Unfinished { left: 1, within }));
    }
}
