//! What was measured, as a table: each figure with its goal.

use std::fmt::Write as _;
use std::time::Duration;

use crate::MIB;
use crate::machine::Machine;

/// One measurement: what it did, and its figures.
pub(crate) struct Report {
    pub(crate) did: String,
    pub(crate) rows: Vec<Row>,
}

impl Report {
    pub(crate) fn is_met(&self) -> bool {
        self.rows.iter().all(|row| row.verdict != Verdict::Missed)
    }
}

pub(crate) struct Row {
    figure: String,
    goal: String,
    measured: String,
    verdict: Verdict,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Met,
    Missed,
    /// There is no goal.
    None,
}

impl Row {
    /// A figure that has to stay under its goal.
    pub(crate) fn under<T: PartialOrd + Copy>(
        figure: impl Into<String>,
        measured: T,
        goal: T,
        show: impl Fn(T) -> String,
    ) -> Self {
        Self {
            figure: figure.into(),
            goal: format!("under {}", show(goal)),
            measured: show(measured),
            verdict: match measured < goal {
                true => Verdict::Met,
                false => Verdict::Missed,
            },
        }
    }

    /// A figure without a goal.
    pub(crate) fn told(figure: impl Into<String>, measured: impl Into<String>) -> Self {
        Self {
            figure: figure.into(),
            goal: "–".to_owned(),
            measured: measured.into(),
            verdict: Verdict::None,
        }
    }
}

/// Writes everything to standard output, as Markdown.
#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
pub(crate) fn print(machine: &Machine, reports: &[Report]) {
    let mut text = format!("\n{}\n", machine.describe());
    for report in reports {
        let mut line = |text_of_line: &str| {
            text.push_str(text_of_line);
            text.push('\n');
        };
        line("");
        line(&report.did);
        line("");
        line("| figure | goal | measured | verdict |");
        line("|---|---|---|---|");
        for row in &report.rows {
            let verdict = match row.verdict {
                Verdict::Met => "met",
                Verdict::Missed => "MISSED",
                Verdict::None => "–",
            };
            let (figure, goal, measured) = (&row.figure, &row.goal, &row.measured);
            line(&format!("| {figure} | {goal} | {measured} | {verdict} |"));
        }
    }
    let missed = reports.iter().flat_map(|report| &report.rows);
    let missed = missed.filter(|row| row.verdict == Verdict::Missed).count();
    let verdict = match missed {
        0 => "every goal is met".to_owned(),
        count => format!("goals missed: {count}"),
    };
    writeln!(text, "\n{verdict}").expect("a string takes everything");
    print!("{text}");
}

pub(crate) fn mebibytes(bytes: i64) -> String {
    let tenths = bytes * 10 / i64::try_from(MIB).expect("it is small");
    let sign = if tenths < 0 { "−" } else { "" };
    let tenths = tenths.abs();
    format!("{sign}{}.{} MiB", tenths / 10, tenths % 10)
}

pub(crate) fn milliseconds(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    match millis < 10.0 {
        true => format!("{millis:.2} ms"),
        false => format!("{millis:.0} ms"),
    }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// The middle one; of an even number the higher of two.
pub(crate) fn median<T: PartialOrd + Copy>(values: &[T]) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("figures can be ordered"));
    sorted[sorted.len() / 2]
}

/// All rounds of one figure.
pub(crate) fn each<T: Copy>(values: &[T], show: impl Fn(T) -> String) -> String {
    let shown: Vec<_> = values.iter().map(|value| show(*value)).collect();
    shown.join(", ")
}
