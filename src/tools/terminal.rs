//! Where lines come from and go to: a person's terminal, with editing and a history, or standard input and output.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use miette::{IntoDiagnostic as _, Result, WrapErr as _};
use rustyline_async::{Readline, ReadlineEvent, SharedWriter};
use tokio::sync::mpsc;

/// Lines that are read ahead of who takes them.
const AHEAD: usize = 16;

/// See the top of this file.
pub(super) enum Terminal {
    Interactive(Box<Readline>, SharedWriter),
    /// Read by a thread of its own: a read of standard input cannot be given up, and nobody is to wait for one at the end.
    Script(mpsc::Receiver<std::io::Result<String>>),
}

impl Terminal {
    pub(super) fn open() -> Result<Self> {
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            let (readline, writer) =
                Readline::new("> ".to_owned()).into_diagnostic().wrap_err("the terminal cannot be used")?;
            return Ok(Self::Interactive(Box::new(readline), writer));
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
        Ok(Self::Script(taken))
    }

    pub(super) const fn is_interactive(&self) -> bool {
        matches!(self, Self::Interactive(..))
    }

    /// The next line; nothing at the end. May be cancelled without losing one.
    pub(super) async fn line(&mut self) -> Result<Option<String>> {
        match self {
            Self::Script(lines) => lines.recv().await.transpose().into_diagnostic(),
            Self::Interactive(readline, _) => match readline.readline().await.into_diagnostic()? {
                ReadlineEvent::Line(line) => {
                    readline.add_history_entry(line.clone());
                    Ok(Some(line))
                }
                ReadlineEvent::Eof | ReadlineEvent::Interrupted => Ok(None),
            },
        }
    }

    pub(super) fn print(&mut self, line: &str) -> Result<()> {
        match self {
            Self::Interactive(_, writer) => writeln!(writer, "{line}"),
            Self::Script(_) => writeln!(std::io::stdout(), "{line}"),
        }
        .into_diagnostic()
    }

    /// Shows what was printed last, and gives the terminal back as it was.
    pub(super) fn close(&mut self) {
        if let Self::Interactive(readline, _) = self {
            // Without a terminal there is nothing to restore.
            readline.flush().unwrap_or_default();
        }
    }
}
