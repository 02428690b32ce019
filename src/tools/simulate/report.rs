//! The closing report: a table for people, JSON for programs.

use std::sync::atomic::Ordering;

use serde_json::{Map, Value, json};

use super::Outcome;
use super::group::World;
use super::totals::{Quantiles, Totals};

/// One row for each thing that was counted.
pub(super) fn table(outcome: &Outcome, totals: &Totals) -> String {
    let tally = &outcome.tally;
    let mut rows = vec![
        ("sent", format!("{}  ({} ephemeral)", tally.sent, tally.ephemeral)),
        ("acked", format!("{}  ({} of them in committed transactions)", tally.acked, tally.committed)),
        ("delivered", format!("{}  and {} ephemeral", tally.delivered, tally.ephemeral_delivered)),
        ("duplicates", format!("{} sent again, {} redelivered", tally.resent, tally.redelivered)),
        ("lost", tally.lost.to_string()),
        ("misordered", tally.faults.values().sum::<u64>().to_string()),
        ("reconnects", totals.reconnects.load(Ordering::Relaxed).to_string()),
    ];
    if tally.forfeited > 0 {
        rows.push(("forfeited", format!("{}  (owed to devices that were dropped)", tally.forfeited)));
    }
    rows.extend(totals.events().into_iter().map(|(event, count)| ("chaos", format!("{count} {}", event.text()))));
    rows.extend(totals.quantiles().iter().map(|(which, quantiles)| (which.text(), shown(quantiles))));
    rows.push(("elapsed", format!("{:.2} s", outcome.elapsed.as_secs_f64())));
    if let Some(chat) = &outcome.chat {
        rows.push(("chat messages sent", chat.sent.to_string()));
        rows.push(("  acked", chat.acked.to_string()));
        rows.push(("  delivered", chat.delivered.to_string()));
        rows.push(("  duplicates", chat.duplicates.to_string()));
        rows.push(("  lost", chat.lost.to_string()));
        rows.push(("  misordered", chat.misordered.to_string()));
        if chat.foreign > 0 {
            rows.push(("  fault", format!("{} messages or acknowledgements of what nobody sent", chat.foreign)));
        }
    }
    rows.extend(tally.faults.iter().map(|(fault, count)| ("  fault", format!("{count} {}", fault.text()))));
    if outcome.interrupted {
        rows.push(("ended", "early, as asked".to_owned()));
    }
    rows.extend(outcome.gave_up.iter().map(|why| ("gave up", why.clone())));
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

pub(super) fn shown(quantiles: &Quantiles) -> String {
    if quantiles.count == 0 {
        return "-".to_owned();
    }
    let Quantiles { p50, p90, p99, p999, max, .. } = *quantiles;
    let [p50, p90, p99, p999, max] = [p50, p90, p99, p999, max].map(ms);
    format!("p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}, max {max}")
}

fn ms(us: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let ms = us as f64 / 1000.0;
    format!("{ms:.2} ms")
}

/// Everything the table says, and the scenario.
pub(super) fn json(outcome: &Outcome, world: &World) -> Value {
    let tally = &outcome.tally;
    let faults: Map<String, Value> =
        tally.faults.iter().map(|(fault, count)| (fault.text().to_owned(), json!(count))).collect();
    let events: Map<String, Value> =
        world.totals.events().into_iter().map(|(event, count)| (event.text().to_owned(), json!(count))).collect();
    let latencies: Map<String, Value> =
        world.totals.quantiles().iter().map(|(which, it)| (which.key().to_owned(), json!(it))).collect();
    let chat = outcome.chat.as_ref().map(|chat| {
        json!({
            "sent": chat.sent, "acked": chat.acked, "delivered": chat.delivered, "duplicates": chat.duplicates,
            "lost": chat.lost, "misordered": chat.misordered, "foreign": chat.foreign,
        })
    });
    json!({
        "heliostat": env!("CARGO_PKG_VERSION"),
        "good": outcome.is_good(),
        "gave_up": outcome.gave_up,
        "interrupted": outcome.interrupted,
        "elapsed_s": outcome.elapsed.as_secs_f64(),
        "scenario": world.scenario,
        "messages": {
            "sent": tally.sent, "ephemeral": tally.ephemeral, "acked": tally.acked, "committed": tally.committed,
            "delivered": tally.delivered, "ephemeral_delivered": tally.ephemeral_delivered, "resent": tally.resent,
            "redelivered": tally.redelivered, "forfeited": tally.forfeited, "lost": tally.lost,
        },
        "faults": faults,
        "reconnects": world.totals.reconnects.load(Ordering::Relaxed),
        "chaos": events,
        "latencies_counted_from": if world.scenario.is_open() { "due" } else { "said" },
        "latencies": latencies,
        "chat": chat,
    })
}
