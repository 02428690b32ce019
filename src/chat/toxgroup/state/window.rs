//! Which numbers of an origin were heard (spec 4.1).

use std::time::Duration;

/// How far ahead a number may be, and how far behind one may come late.
pub const WINDOW: u32 = 64;
/// After so long without anything from an origin, a jump is believed: it was cut off and went on counting.
pub const RESYNC: Duration = Duration::from_secs(35);

/// The numbers of one origin. A superset of what the old programs accept, which take nothing late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// The highest; 0: nothing was heard yet.
    last: u32,
    /// Bit n: the one n + 1 below the last was heard.
    below: u64,
    /// When the last one was accepted, on the monotonic clock.
    at: Duration,
}

impl Window {
    /// Whether nothing was heard yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// Whether this number is new. `signed`: whoever sent it proved it, so it may be any number ahead.
    #[must_use]
    pub fn accepts(&self, number: u32, now: Duration, signed: bool) -> bool {
        if number == 0 {
            return false;
        }
        if self.last == 0 {
            return true;
        }
        let ahead = number.wrapping_sub(self.last);
        match ahead {
            0 => false,
            1..=WINDOW => true,
            _ if ahead < 1 << 31 => signed || now.saturating_sub(self.at) >= RESYNC,
            _ => {
                let behind = self.last.wrapping_sub(number);
                behind <= WINDOW && self.below & bit(behind) == 0
            }
        }
    }

    /// Remembers a number that was accepted.
    pub fn take(&mut self, number: u32, now: Duration) {
        self.at = now;
        let ahead = number.wrapping_sub(self.last);
        if self.last == 0 {
            self.last = number;
        } else if ahead < 1 << 31 {
            // What is shifted by a whole window leaves nothing of it.
            self.below = self.below.checked_shl(ahead).unwrap_or(0) | bit(ahead);
            self.last = number;
        } else {
            self.below |= bit(self.last.wrapping_sub(number));
        }
    }
}

/// The bit of a number so far below the last; none beyond the window.
const fn bit(behind: u32) -> u64 {
    if behind >= 1 && behind <= WINDOW { 1 << (behind - 1) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn heard(numbers: &[u32]) -> Window {
        let mut window = Window::default();
        for number in numbers {
            assert!(window.accepts(*number, NOW, false), "{number} of {numbers:?}");
            window.take(*number, NOW);
        }
        window
    }

    #[test]
    fn each_number_is_accepted_once_also_when_it_comes_late() {
        let window = heard(&[1_000, 1_002, 1_001, 1_066]);
        for again in [1_000, 1_001, 1_002, 1_066] {
            assert!(!window.accepts(again, NOW, true), "{again}");
        }
        assert!(window.accepts(1_003, NOW, false), "late, and new");
        assert!(!window.accepts(1_001, NOW, false) && !window.accepts(900, NOW, false), "too late");
        assert!(!Window::default().accepts(0, NOW, true), "no number at all");
    }

    #[test]
    fn the_window_goes_round_with_the_numbers() {
        let window = heard(&[u32::MAX - 1, u32::MAX, 1, 3]);
        assert!(window.accepts(2, NOW, false));
        assert!(!window.accepts(u32::MAX, NOW, false) && !window.accepts(1, NOW, false));
    }

    #[test]
    fn a_jump_is_believed_after_a_silence_or_by_a_signature() {
        let window = heard(&[10]);
        assert!(window.accepts(74, NOW, false) && !window.accepts(75, NOW, false));
        assert!(window.accepts(75, NOW, true));
        assert!(!window.accepts(75, NOW + RESYNC - Duration::from_secs(1), false));
        assert!(window.accepts(75, NOW + RESYNC, false));
        let window = heard(&[10, 74]);
        assert!(!window.accepts(10, NOW, false), "still in the window");
    }
}
