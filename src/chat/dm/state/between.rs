//! Friends, requests and blocks between two (spec 2.4, 3): how they stand, and what each of them can do about it.

use crate::chat::dm::wire::Code;

/// How two stand to each other, seen from the first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Between {
    /// They are friends.
    pub friends: bool,
    /// The first has asked to be.
    pub asked: bool,
    /// The other one has.
    pub was_asked: bool,
    /// The first does not want to hear of the other.
    pub blocks: bool,
    /// The other does not want to hear of the first.
    pub is_blocked: bool,
}

/// What the first does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// Asks to be friends.
    Ask,
    /// Answers the other's question.
    Answer {
        /// Yes or no.
        accept: bool,
    },
    /// Is a friend no longer.
    Unfriend,
    /// Does not want to hear of the other.
    Block,
    /// Wants to again.
    Unblock,
}

impl Between {
    /// How they stand afterwards.
    ///
    /// # Errors
    /// The [`Code`] it is refused with, which never tells that the other blocks.
    pub fn after(self, step: Step) -> Result<Self, Code> {
        match step {
            Step::Ask if self.is_blocked => Err(Code::CannotFriend),
            Step::Ask if self.friends => Err(Code::AlreadyFriends),
            Step::Ask if self.asked => Err(Code::AlreadyRequested),
            Step::Ask if self.was_asked => Err(Code::RequestWaiting),
            Step::Ask => Ok(Self { asked: true, blocks: false, ..self }),
            Step::Answer { .. } if !self.was_asked => Err(Code::NoRequest),
            Step::Answer { accept: true } => Ok(Self { friends: true, was_asked: false, blocks: false, ..self }),
            Step::Answer { accept: false } => Ok(Self { was_asked: false, ..self }),
            Step::Unfriend if !self.friends => Err(Code::NotFriends),
            Step::Unfriend => Ok(Self { friends: false, ..self }),
            Step::Block if self.blocks => Err(Code::CannotBlock),
            Step::Block => Ok(Self { friends: false, asked: false, blocks: true, ..self }),
            Step::Unblock if !self.blocks => Err(Code::NotBlocked),
            Step::Unblock => Ok(Self { blocks: false, ..self }),
        }
    }

    /// Whether they may have a DM of their own, and speak in it (spec 6.2).
    ///
    /// # Errors
    /// [`Code::NotFriends`], also when it is because of a block.
    pub const fn may_speak(self, needs_friendship: bool) -> Result<(), Code> {
        let may = if needs_friendship { self.friends } else { !self.blocks && !self.is_blocked };
        if may { Ok(()) } else { Err(Code::NotFriends) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Between =
        Between { friends: false, asked: false, was_asked: false, blocks: false, is_blocked: false };

    #[test]
    fn friends_and_blocks_follow_the_table() {
        let cases = [
            (NOTHING, Step::Ask, Ok(Between { asked: true, ..NOTHING })),
            (
                Between { was_asked: true, ..NOTHING },
                Step::Answer { accept: true },
                Ok(Between { friends: true, ..NOTHING }),
            ),
            (Between { was_asked: true, ..NOTHING }, Step::Answer { accept: false }, Ok(NOTHING)),
            (
                Between { was_asked: true, ..NOTHING },
                Step::Block,
                Ok(Between { was_asked: true, blocks: true, ..NOTHING }),
            ),
            (
                Between { was_asked: true, blocks: true, ..NOTHING },
                Step::Answer { accept: true },
                Ok(Between { friends: true, ..NOTHING }),
            ),
            (
                Between { was_asked: true, blocks: true, ..NOTHING },
                Step::Answer { accept: false },
                Ok(Between { blocks: true, ..NOTHING }),
            ),
            (Between { asked: true, ..NOTHING }, Step::Block, Ok(Between { blocks: true, ..NOTHING })),
            (Between { friends: true, ..NOTHING }, Step::Block, Ok(Between { blocks: true, ..NOTHING })),
            (Between { is_blocked: true, ..NOTHING }, Step::Ask, Err(Code::CannotFriend)),
            (Between { blocks: true, ..NOTHING }, Step::Ask, Ok(Between { asked: true, ..NOTHING })),
            (
                Between { blocks: true, is_blocked: true, ..NOTHING },
                Step::Unblock,
                Ok(Between { is_blocked: true, ..NOTHING }),
            ),
            (Between { asked: true, ..NOTHING }, Step::Ask, Err(Code::AlreadyRequested)),
            (Between { was_asked: true, ..NOTHING }, Step::Ask, Err(Code::RequestWaiting)),
            (Between { friends: true, ..NOTHING }, Step::Ask, Err(Code::AlreadyFriends)),
            (Between { blocks: true, ..NOTHING }, Step::Block, Err(Code::CannotBlock)),
            (NOTHING, Step::Unblock, Err(Code::NotBlocked)),
            (NOTHING, Step::Unfriend, Err(Code::NotFriends)),
            (Between { friends: true, ..NOTHING }, Step::Unfriend, Ok(NOTHING)),
        ];
        for (before, step, after) in cases {
            assert_eq!(before.after(step), after, "{before:?} {step:?}");
        }
    }

    #[test]
    fn without_the_need_for_friendship_a_block_still_refuses() {
        let blocked = Between { is_blocked: true, ..NOTHING };
        assert_eq!((NOTHING.may_speak(true), NOTHING.may_speak(false)), (Err(Code::NotFriends), Ok(())));
        assert_eq!(blocked.may_speak(false), Err(Code::NotFriends));
    }
}
