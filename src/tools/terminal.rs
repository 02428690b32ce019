//! Where lines come from and go to: a person's terminal, with editing and a history, or standard input and output.
//!
//! A terminal is looked after by a task of its own, all the time: keys are answered and lines are shown also while nobody here takes
//! lines, as when there is no connection. Whoever prints more than it shows waits. However a [`Terminal`] is left, by its end, an error
//! or a panic, everything printed is shown and the terminal is given back as it was.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use miette::{IntoDiagnostic as _, Result, WrapErr as _, miette};
use rustyline_async::{Readline, ReadlineEvent, SharedWriter};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::{JoinHandle, block_in_place};
use tokio_util::sync::CancellationToken;

/// Lines of a script that are read ahead of who takes them.
const AHEAD: usize = 16;
/// Lines of a person, who cannot be stopped, that wait to be taken.
const TYPED_MAX: usize = 1_024;
/// Lines that wait to be shown.
const SHOWN_MAX: usize = 64;

/// See the top of this file.
pub(super) struct Terminal {
    /// Of a script, they are read by a thread of its own: a read of standard input cannot be given up, and nobody is to wait for one at
    /// the end.
    lines: mpsc::Receiver<std::io::Result<String>>,
    screen: Option<Screen>,
    interrupted: CancellationToken,
}

/// A person's side of it.
struct Screen {
    shown: mpsc::Sender<String>,
    edits: JoinHandle<()>,
}

impl Terminal {
    pub(super) fn open() -> Result<Self> {
        let interrupted = CancellationToken::new();
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            let (readline, writer) =
                Readline::new("> ".to_owned()).into_diagnostic().wrap_err("the terminal cannot be used")?;
            let ((typed, lines), (shown, shows)) = (mpsc::channel(TYPED_MAX), mpsc::channel(SHOWN_MAX));
            let edits = tokio::spawn(edit(readline, writer, typed, shows, interrupted.clone()));
            return Ok(Self { lines, screen: Some(Screen { shown, edits }), interrupted });
        }
        let (lines, taken) = mpsc::channel(AHEAD);
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines() {
                let failed = line.is_err();
                if lines.blocking_send(line).is_err() || failed {
                    break;
                }
            }
        });
        Ok(Self { lines: taken, screen: None, interrupted })
    }

    pub(super) const fn is_interactive(&self) -> bool {
        self.screen.is_some()
    }

    /// The next line; nothing at the end. May be cancelled without losing one.
    pub(super) async fn line(&mut self) -> Result<Option<String>> {
        self.lines.recv().await.transpose().into_diagnostic()
    }

    /// Cancelled when a person does not want to wait any more, which is also the end of the lines.
    pub(super) fn interrupted(&self) -> CancellationToken {
        self.interrupted.clone()
    }

    pub(super) fn print(&mut self, line: &str) -> Result<()> {
        let Some(screen) = &self.screen else { return writeln!(std::io::stdout(), "{line}").into_diagnostic() };
        let shown = match screen.shown.try_send(line.to_owned()) {
            // The task that shows them gets on meanwhile, on another thread.
            Err(TrySendError::Full(line)) => block_in_place(|| screen.shown.blocking_send(line)).is_ok(),
            other => other.is_ok(),
        };
        if shown { Ok(()) } else { Err(miette!("the terminal is gone")) }
    }

    /// Shows what was printed last, and gives the terminal back as it was.
    pub(super) fn close(&mut self) {
        if let Some(Screen { shown, edits }) = self.screen.take() {
            drop(shown);
            // Without a terminal there is nothing to restore.
            block_in_place(|| tokio::runtime::Handle::current().block_on(edits)).unwrap_or_default();
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.close();
    }
}

/// Looks after a terminal until nothing more is printed.
async fn edit(
    mut readline: Readline,
    mut writer: SharedWriter,
    typed: mpsc::Sender<std::io::Result<String>>,
    mut shows: mpsc::Receiver<String>,
    interrupted: CancellationToken,
) {
    let mut typed = Some(typed);
    let mut broken = false;
    loop {
        tokio::select! {
            // First, since it empties what the writer holds.
            biased;
            event = readline.readline(), if !broken => match event {
                Ok(ReadlineEvent::Line(line)) => {
                    readline.add_history_entry(line.clone());
                    let full = typed.as_ref().is_some_and(|typed| matches!(typed.try_send(Ok(line)), Err(TrySendError::Full(_))));
                    if full {
                        writeln!(writer, "!! too many lines wait: that one was not taken").unwrap_or_default();
                    }
                }
                Ok(ReadlineEvent::Eof) => typed = None,
                Ok(ReadlineEvent::Interrupted) => {
                    typed = None;
                    interrupted.cancel();
                }
                Err(error) => {
                    broken = true;
                    if let Some(typed) = typed.take() {
                        typed.try_send(Err(std::io::Error::other(error))).unwrap_or_default();
                    }
                }
            },
            line = shows.recv() => match line {
                // What does not fit was lost with the terminal.
                Some(line) => writeln!(writer, "{line}").unwrap_or_default(),
                None => break,
            },
        }
    }
    readline.flush().unwrap_or_default();
}
