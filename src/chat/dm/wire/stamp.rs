//! Times as they are written (spec 1.3): UTC, 26 characters, without a zone.

use std::time::{Duration, UNIX_EPOCH};

/// Microseconds since the Unix epoch as `YYYY-MM-DDTHH:MM:SS.ffffff`.
#[must_use]
pub fn write(us: i64) -> String {
    let at = UNIX_EPOCH + Duration::from_micros(u64::try_from(us).unwrap_or_default());
    let mut text = humantime::format_rfc3339_micros(at).to_string();
    text.truncate(text.trim_end_matches('Z').len());
    text
}

/// The first microsecond that is not before what `text` says: an ISO 8601 time with or without a zone (`Z`, `+hh:mm`,
/// `-hh:mm`; none is UTC) and up to nine digits of a fraction.
#[must_use]
pub fn read(text: &str) -> Option<i64> {
    const SECONDS: usize = "YYYY-MM-DDTHH:MM:SS".len();
    let (seconds, rest) = text.split_at_checked(SECONDS)?;
    let at = humantime::parse_rfc3339_weak(seconds).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let seconds = i64::try_from(at.as_secs()).ok()?;
    let zone_at = rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len());
    let (fraction, zone) = rest.split_at_checked(zone_at)?;
    let nanos = match fraction.strip_prefix('.') {
        Some(digits) if (1..=9).contains(&digits.len()) && digits.bytes().all(|it| it.is_ascii_digit()) => {
            format!("{digits:0<9}").parse::<i64>().ok()?
        }
        None if fraction.is_empty() => 0,
        _ => return None,
    };
    let ahead = match zone {
        "" | "Z" | "z" => 0,
        zone => {
            let (sign, clock) = zone.split_at_checked(1)?;
            let (hours, minutes) = clock.split_once(':')?;
            let two = |digits: &str| digits.parse::<i64>().ok().filter(|_| digits.len() == 2 && !digits.contains('+'));
            let (hours, minutes) = (two(hours)?, two(minutes)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            (hours * 3_600 + minutes * 60) * if sign == "-" { -1 } else { 1 }
        }
    };
    seconds.checked_sub(ahead)?.checked_mul(1_000_000)?.checked_add(nanos.checked_add(999)? / 1_000)
}
