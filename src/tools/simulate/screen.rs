//! What can be seen while a simulation runs: a screen on a terminal, a line every few seconds elsewhere.

use std::collections::VecDeque;
use std::io::{IsTerminal as _, Stderr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Sparkline, Table};

use super::group::World;
use super::tell;
use super::totals::Quantiles;

const LINE_EVERY: Duration = Duration::from_secs(5);
/// Samples of the throughput that are kept, one each second.
const SAMPLES: usize = 300;
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// What is to be seen.
#[derive(Debug)]
pub(super) struct Sight<'a> {
    pub(super) world: &'a World,
    pub(super) faults: u64,
    pub(super) elapsed: Duration,
    /// When the devices are going to stop, if that is known.
    pub(super) ends_at: Option<Duration>,
}

/// Shows it.
pub(super) enum Progress {
    Screen(Box<Screen>),
    Lines { next: Duration },
}

impl Progress {
    pub(super) fn new(plain: bool) -> Self {
        let watched = !plain && std::io::stderr().is_terminal() && std::io::stdin().is_terminal();
        match watched.then(Screen::open) {
            Some(Ok(screen)) => Self::Screen(Box::new(screen)),
            // A terminal that is none after all.
            Some(Err(_)) | None => Self::Lines { next: LINE_EVERY },
        }
    }

    /// Returns whether somebody asked for the end.
    pub(super) fn show(&mut self, sight: &Sight<'_>) -> bool {
        match self {
            Self::Screen(screen) => {
                screen.sample(sight);
                // A screen that cannot be drawn is no reason to stop.
                let _unseen = screen.terminal.draw(|frame| screen.view.draw(frame, sight));
                asked_for_end()
            }
            Self::Lines { next } => {
                if sight.elapsed >= *next {
                    *next = sight.elapsed + LINE_EVERY;
                    tell(&line(sight));
                }
                false
            }
        }
    }
}

fn line(sight: &Sight<'_>) -> String {
    let totals = &sight.world.totals;
    let [sent, acked, delivered, reconnects] =
        [&totals.sent, &totals.acked, &totals.delivered, &totals.reconnects].map(|it| it.load(Ordering::Relaxed));
    let faults = if sight.faults > 0 { format!(", FAULTS {}", sight.faults) } else { String::new() };
    format!(
        "{:6.1} s  sent {sent}, acked {acked}, delivered {delivered}, online {}, reconnects {reconnects}{faults}",
        sight.elapsed.as_secs_f64(),
        totals.devices_online(),
    )
}

fn asked_for_end() -> bool {
    let mut asked = false;
    while event::poll(Duration::ZERO).unwrap_or(false) {
        let Ok(input) = event::read() else { break };
        if let Input::Key(key) = input {
            let interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
            asked |= key.code == KeyCode::Char('q') || interrupt;
        }
    }
    asked
}

/// The terminal, which is given back when this is dropped.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stderr>>,
    view: View,
}

/// What has to be remembered to show it.
#[derive(Debug, Default)]
struct View {
    /// Acknowledged and delivered messages in each second.
    acked: VecDeque<u64>,
    delivered: VecDeque<u64>,
    last: (Duration, u64, u64),
}

impl Screen {
    fn open() -> std::io::Result<Self> {
        enable_raw_mode()?;
        let opened = execute!(std::io::stderr(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(std::io::stderr())));
        match opened {
            Ok(terminal) => Ok(Self { terminal, view: View::default() }),
            Err(error) => {
                disable_raw_mode()?;
                Err(error)
            }
        }
    }

    fn sample(&mut self, sight: &Sight<'_>) {
        self.view.sample(sight);
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        disable_raw_mode().unwrap_or_default();
        execute!(std::io::stderr(), LeaveAlternateScreen).unwrap_or_default();
        self.terminal.show_cursor().unwrap_or_default();
    }
}

impl View {
    fn sample(&mut self, sight: &Sight<'_>) {
        let totals = &sight.world.totals;
        let (at, acked, delivered) = self.last;
        if sight.elapsed.saturating_sub(at) < SAMPLE_EVERY {
            return;
        }
        let [now_acked, now_delivered] = [&totals.acked, &totals.delivered].map(|it| it.load(Ordering::Relaxed));
        for (samples, value) in [(&mut self.acked, now_acked - acked), (&mut self.delivered, now_delivered - delivered)]
        {
            if samples.len() >= SAMPLES {
                samples.pop_front();
            }
            samples.push_back(value);
        }
        self.last = (sight.elapsed, now_acked, now_delivered);
    }

    fn draw(&self, frame: &mut ratatui::Frame<'_>, sight: &Sight<'_>) {
        let totals = &sight.world.totals;
        let [head, acked, delivered, middle, foot] = Layout::vertical([
            Constraint::Length(4),
            Constraint::Length(6),
            Constraint::Length(6),
            Constraint::Min(6),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let count = |it: &std::sync::atomic::AtomicU64| it.load(Ordering::Relaxed);
        let scenario = &sight.world.scenario;
        let devices = scenario.groups.get() * scenario.devices.get();
        let until = sight.ends_at.map(|at| format!(" of {}", seconds(at))).unwrap_or_default();
        let text = vec![
            Line::from(format!(
                "{}{until}   devices online {} of {devices}   sent {}   acked {}   delivered {}   reconnects {}",
                seconds(sight.elapsed),
                totals.devices_online(),
                count(&totals.sent),
                count(&totals.acked),
                count(&totals.delivered),
                count(&totals.reconnects),
            )),
            Line::from(format!("faults {}", sight.faults)).style(Style::new().fg(if sight.faults > 0 {
                Color::Red
            } else {
                Color::Green
            })),
        ];
        frame.render_widget(Paragraph::new(text).block(Block::bordered().title("heliostat simulate")), head);
        for (area, title, samples) in [(acked, "acknowledged", &self.acked), (delivered, "delivered", &self.delivered)]
        {
            let width = usize::from(area.width.saturating_sub(2));
            let shown: Vec<u64> = samples.iter().skip(samples.len().saturating_sub(width)).copied().collect();
            let title = format!("{title}, per second: {}", shown.last().copied().unwrap_or_default());
            frame.render_widget(Sparkline::default().block(Block::bordered().title(title)).data(&shown), area);
        }
        let [left, right] = Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(middle);
        let rows = totals.quantiles().into_iter().map(|(which, quantiles)| {
            let Quantiles { p50, p90, p99, p999, max, .. } = quantiles;
            let times = [p50, p90, p99, p999, max].map(|us| format!("{}.{} ms", us / 1_000, us % 1_000 / 100));
            Row::new(std::iter::once(which.text().to_owned()).chain(times))
        });
        let widths = [Constraint::Min(24)].into_iter().chain([Constraint::Length(11); 5]);
        let table = Table::new(rows, widths)
            .header(Row::new(["latency", "p50", "p90", "p99", "p99.9", "max"]))
            .block(Block::bordered().title("latencies"));
        frame.render_widget(table, left);
        let events = totals.events().into_iter().map(|(event, count)| Line::from(format!("{count} {}", event.text())));
        let troubles = totals.troubles(5).into_iter().map(|it| Line::from(it).style(Style::new().fg(Color::Yellow)));
        let text: Vec<Line<'_>> = events.chain(troubles).collect();
        frame.render_widget(Paragraph::new(text).block(Block::bordered().title("chaos and trouble")), right);
        frame.render_widget(Paragraph::new("q ends it with a report; again: at once"), foot);
    }
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs())
}
