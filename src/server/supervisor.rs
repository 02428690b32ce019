//! What systemd is told, and what it asks (`sd_notify(3)`). Without a supervisor nothing happens here.

use std::convert::Infallible;
use std::time::Duration;

use sd_notify::NotifyState;

use super::Mediator;

/// How long a reading of liveness may take, as a part of the watchdog's interval.
const HALF: u32 = 2;

fn tell(states: &[NotifyState<'_>]) {
    // Whoever asked to be told and cannot be reached will notice.
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the supervisor cannot be told");
    }
}

/// Devices can come.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        // Both in one message, or newer versions take it for none.
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => tracing::debug!(%error, "the supervisor's clock cannot be read"),
    }
}

/// The end has begun.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells again and again that we live, for as long as connections are accepted and commits are kept; never ends. A server that
/// cannot say so any more is restarted by the supervisor, if it was told to watch.
pub(super) async fn watchdog(mediator: &Mediator) -> Infallible {
    let Some(interval) = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero()) else {
        return std::future::pending().await;
    };
    let half: Duration = interval / HALF;
    loop {
        match tokio::time::timeout(half, mediator.is_alive()).await {
            Ok(Ok(())) => tell(&[NotifyState::Watchdog]),
            Ok(Err(error)) => tracing::error!(%error, "nothing is kept any more"),
            Err(_elapsed) => tracing::error!("connections are not accepted, or commits not kept, in time"),
        }
        tokio::time::sleep(half).await;
    }
}
