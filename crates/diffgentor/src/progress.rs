//! Progress on standard error: bars on a terminal, lines elsewhere, or nothing.

use crate::log;
use dg_core::StepEvent;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shows how far a run is.
pub(crate) struct Progress {
    form: Form,
    pictures: usize,
    batches: usize,
    /// Kernels are compiled and tuned when they are first used, which has not happened yet.
    is_cold: bool,
    /// Batches in flight by number, from 0.
    flight: BTreeMap<usize, Batch>,
}

enum Form {
    Bars { pictures: ProgressBar, steps: ProgressBar },
    Lines,
    Silent,
}

#[derive(Default)]
struct Batch {
    has_begun: bool,
    pictures: usize,
    step: usize,
    steps: usize,
    seconds: f64,
    throttle: Throttle,
}

impl Progress {
    /// Progress over this many pictures in this many batches.
    pub(crate) fn new(silent: bool, pictures: usize, batches: usize, is_cold: bool) -> Self {
        let form = match silent {
            true => Form::Silent,
            false if std::io::stderr().is_terminal() => bars(pictures),
            false => Form::Lines,
        };
        Self { form, pictures, batches, is_cold, flight: BTreeMap::new() }
    }

    /// A message about a stage that has no steps: loading.
    pub(crate) fn stage(&self, what: &str) {
        match &self.form {
            Form::Bars { steps, .. } => {
                steps.enable_steady_tick(Duration::from_millis(100));
                steps.set_message(what.to_string());
            }
            Form::Lines => log::note(what),
            Form::Silent => (),
        }
    }

    /// A batch was handed in; it begins now, or at its first event.
    pub(crate) fn batch(&mut self, number: usize, pictures: usize, steps: usize, begins: bool) {
        self.flight.insert(number, Batch { pictures, steps, ..Batch::default() });
        if begins {
            self.begin(number);
        }
    }

    /// Something happened in a batch.
    pub(crate) fn event(&mut self, number: usize, event: &StepEvent) {
        self.begin(number);
        let is_lead = self.lead() == Some(number);
        let head = self.head(number);
        let Some(batch) = self.flight.get_mut(&number) else { return };
        let StepEvent::Step { step, seconds, .. } = event else {
            if matches!(event, StepEvent::TextEncoded { .. }) && is_lead {
                self.first_step(&head);
            }
            return;
        };
        if std::mem::take(&mut self.is_cold) && matches!(self.form, Form::Lines) {
            log::note(&format!("the kernels are ready; the first step took {}", clock(*seconds)));
        }
        batch.step = *step;
        batch.seconds += seconds;
        match &self.form {
            Form::Bars { .. } if is_lead => self.show(number),
            Form::Lines if batch.throttle.due(*step, batch.steps, Instant::now()) => {
                log::note(&format!("{head}: {}", batch.pace()));
            }
            _ => (),
        }
    }

    /// A batch comes to its first step.
    fn first_step(&self, head: &str) {
        match &self.form {
            Form::Bars { steps, .. } if self.is_cold => {
                steps.enable_steady_tick(Duration::from_millis(100));
                steps.set_message(format!("{head}: {WARM_UP}"));
            }
            Form::Bars { steps, .. } => steps.set_message(head.to_string()),
            Form::Lines if self.is_cold => log::note(&format!("{head}: {WARM_UP}")),
            Form::Lines | Form::Silent => (),
        }
    }

    /// A batch has ended.
    pub(crate) fn ended(&mut self, number: usize) {
        let was_lead = self.lead() == Some(number);
        self.flight.remove(&number);
        if let (true, Some(lead)) = (was_lead, self.lead()) {
            self.show(lead);
        }
    }

    /// The batch that the bar is about: the earliest that has begun.
    fn lead(&self) -> Option<usize> {
        self.flight.iter().find(|(_, batch)| batch.has_begun).map(|(number, _)| *number)
    }

    fn begin(&mut self, number: usize) {
        let head = self.head(number);
        let Some(batch) = self.flight.get_mut(&number).filter(|batch| !batch.has_begun) else { return };
        batch.has_begun = true;
        if matches!(self.form, Form::Lines) {
            log::note(&format!("{head}: start"));
        }
        if self.lead() == Some(number) {
            self.show(number);
        }
    }

    /// Puts a batch on the bar.
    fn show(&self, number: usize) {
        let (Form::Bars { steps: bar, .. }, Some(batch)) = (&self.form, self.flight.get(&number)) else {
            return;
        };
        let head = self.head(number);
        if batch.step == 0 {
            bar.reset();
        }
        bar.set_length(batch.steps as u64);
        bar.set_position(batch.step as u64);
        bar.set_message(match batch.step {
            0 => format!("{head}: reading the prompt"),
            step if step == batch.steps => format!("{head}: {}, decoding", batch.pace()),
            _ => format!("{head}: {}", batch.pace()),
        });
    }

    /// A picture is written.
    pub(crate) fn picture(&self) {
        if let Form::Bars { pictures, .. } = &self.form {
            pictures.inc(1);
        }
    }

    /// The run is over.
    pub(crate) fn finish(&self) {
        if let Form::Bars { pictures, steps } = &self.form {
            steps.finish_and_clear();
            pictures.finish_and_clear();
        }
    }

    fn head(&self, number: usize) -> String {
        let images = match self.flight.get(&number) {
            Some(batch) if batch.pictures > 1 => format!(" ({} pictures)", batch.pictures),
            _ => String::new(),
        };
        match self.pictures {
            1 => "picture".into(),
            _ => format!("batch {}/{}{images}", number + 1, self.batches),
        }
    }
}

impl Batch {
    /// `3/28 steps, 1.9 it/s, ETA 13 s`.
    fn pace(&self) -> String {
        let rate = self.step as f64 / self.seconds.max(1e-9);
        let left = (self.steps - self.step.min(self.steps)) as f64 / rate;
        let rate = if rate >= 1.0 { format!("{rate:.1} it/s") } else { format!("{:.1} s/it", 1.0 / rate) };
        format!("{}/{} steps, {rate}, ETA {}", self.step, self.steps, clock(left))
    }
}

/// Lets a line through every tenth of the way or every five seconds, and at the end.
#[derive(Default)]
struct Throttle {
    tenth: usize,
    last: Option<Instant>,
}

impl Throttle {
    fn due(&mut self, done: usize, total: usize, now: Instant) -> bool {
        let tenth = done * 10 / total.max(1);
        let last = *self.last.get_or_insert(now);
        let waited = now.duration_since(last);
        let due = done == total || waited >= LINE_PAUSE || tenth > self.tenth && waited >= LINE_PAUSE_MIN;
        if due {
            self.last = Some(now);
        }
        self.tenth = tenth;
        due
    }
}

fn bars(pictures: usize) -> Form {
    let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
    log::share_terminal(&all);
    let style = |template: &str| {
        ProgressStyle::with_template(template).expect("a template of this file").progress_chars("━╸ ")
    };
    let overall = all.add(ProgressBar::new(pictures as u64));
    overall.set_style(style("{bar:20.green} {pos}/{len} pictures, {elapsed} so far"));
    let steps = all.add(ProgressBar::new(1));
    steps.set_style(style("{bar:20.cyan} {wide_msg}"));
    Form::Bars { pictures: overall, steps }
}

/// `95 s`, `12 min`, `3.4 h`.
fn clock(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

const WARM_UP: &str = "first step; the GPU's kernels are compiled and tuned, which can take minutes";

const LINE_PAUSE: Duration = Duration::from_secs(5);
/// Fast runs need no ten lines.
const LINE_PAUSE_MIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_few() {
        let start = Instant::now();
        let shown = |step_ms: u64| {
            let mut throttle = Throttle::default();
            (1..=100)
                .filter(|i| throttle.due(*i, 100, start + Duration::from_millis(step_ms) * *i as u32))
                .count()
        };
        assert_eq!(shown(1), 1);
        assert!((9..=11).contains(&shown(100)), "{}", shown(100));
        assert!((20..=34).contains(&shown(1000)), "{}", shown(1000));
    }

    #[test]
    fn pace_is_readable() {
        let batch = Batch { step: 3, steps: 28, seconds: 1.5, ..Batch::default() };
        assert_eq!(batch.pace(), "3/28 steps, 2.0 it/s, ETA 12 s");
        let slow = Batch { step: 1, steps: 2, seconds: 200.0, ..Batch::default() };
        assert_eq!(slow.pace(), "1/2 steps, 200.0 s/it, ETA 3 min");
    }
}
