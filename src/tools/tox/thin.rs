//! A thin user's line to a hub.

use std::collections::VecDeque;
use std::io;

use tokio::io::{ReadHalf, WriteHalf};

use super::peer::{FrameReader, write_frame};
use crate::chat::toxgroup::serve::thin::{Op, Request, Told, What};
use crate::client::raw::Duplex;
use crate::wire::toxgroup::THIN_MAX;

/// Events that are held while an answer is waited for; the oldest go.
const HELD_MAX: usize = 1_024;

/// See the top of this file.
pub struct Thin {
    reading: ReadHalf<Box<dyn Duplex>>,
    writing: WriteHalf<Box<dyn Duplex>>,
    frames: FrameReader,
    next_id: u64,
    /// What happened while an answer was waited for.
    held: VecDeque<What>,
}

impl std::fmt::Debug for Thin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Thin").field("next_id", &self.next_id).finish_non_exhaustive()
    }
}

impl Thin {
    /// A line on a stream: TCP, or what a mediator proxies.
    #[must_use]
    pub fn new(stream: Box<dyn Duplex>) -> Self {
        let (reading, writing) = tokio::io::split(stream);
        let held = VecDeque::new();
        Self { reading, writing, frames: FrameReader::new(THIN_MAX), next_id: 1, held }
    }

    /// Asks for something, and waits for the answer to it.
    ///
    /// # Errors
    /// When the line is over, or says what is no answer.
    pub async fn ask(&mut self, op: Op) -> io::Result<What> {
        let id = self.next_id;
        self.next_id += 1;
        let json = serde_json::to_vec(&Request { id: Some(id), op })?;
        write_frame(&mut self.writing, &json).await?;
        loop {
            let told = self.read().await?;
            if told.id == Some(id) {
                return Ok(told.what);
            }
            if self.held.len() == HELD_MAX {
                self.held.pop_front();
            }
            self.held.push_back(told.what);
        }
    }

    /// What happens next. Safe to drop while waiting.
    ///
    /// # Errors
    /// When the line is over, or says what nobody understands.
    pub async fn next(&mut self) -> io::Result<What> {
        match self.held.pop_front() {
            Some(what) => Ok(what),
            None => Ok(self.read().await?.what),
        }
    }

    async fn read(&mut self) -> io::Result<Told> {
        let frame = self.frames.next(&mut self.reading).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(serde_json::from_slice(&frame)?)
    }
}
