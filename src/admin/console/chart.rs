//! Bars per minute, as inline SVG.
//!
//! The picture stretches to the width that there is, so it holds no letters: scale and times stand around it. Each has a text
//! that says the same to who cannot see it.

use std::fmt::Write;

use maud::{Markup, html};

use crate::admin::history::{Counts, Hour, MINUTES};

use super::text;

/// The height of a picture, in its own units; a minute is [`MINUTE`] wide.
const HEIGHT: u64 = 1000;
const MINUTE: u64 = 10;
/// How much of that its bar takes.
const BAR: u64 = 8;

/// One thing that is counted, minute by minute.
pub struct Series<'a> {
    hour: &'a Hour,
    /// `None` where nothing ran.
    values: Vec<Option<u64>>,
    /// Of it, in words: `requests let through`.
    what: String,
    class: &'static str,
}

impl<'a> Series<'a> {
    pub fn new(hour: &'a Hour, what: impl Into<String>, class: &'static str, value: impl Fn(&Counts) -> u64) -> Self {
        let values = hour.minutes.iter().map(|minute| minute.as_ref().map(&value)).collect();
        Self { hour, values, what: what.into(), class }
    }

    pub fn sum(&self) -> u64 {
        self.values.iter().flatten().sum()
    }

    pub fn peak(&self) -> u64 {
        self.values.iter().flatten().copied().max().unwrap_or(0)
    }

    /// What the picture shows, in words.
    fn told(&self) -> String {
        let (what, from) = (&self.what, self.hour.at(self.values.iter().position(Option::is_some).unwrap_or(0)));
        let from = from.strftime("%H:%M");
        let peak = self.peak();
        if peak == 0 {
            return format!("No {what} since {from} UTC.");
        }
        let when = self.values.iter().rposition(|value| *value == Some(peak)).unwrap_or(0);
        let last = self.values.get(MINUTES - 2).copied().flatten();
        let last = last.map(|last| format!(", {} in the last whole minute", text::number(last))).unwrap_or_default();
        format!(
            "{} {what} since {from} UTC; at most {} in a minute, at {}{last}.",
            text::number(self.sum()),
            text::number(peak),
            self.hour.at(when).strftime("%H:%M"),
        )
    }

    /// The picture alone, scaled to `most`.
    fn picture(&self, most: u64, lines: bool) -> Markup {
        let mut bars = String::new();
        let mut voids = String::new();
        let mut now = String::new();
        let width = MINUTE * self.values.len() as u64;
        for (left, value) in (0..).step_by(usize::try_from(MINUTE).unwrap_or(1)).zip(&self.values) {
            let Some(value) = value else {
                let _ = write!(voids, "M{left} 0h{MINUTE}v{HEIGHT}h-{MINUTE}z");
                continue;
            };
            if *value == 0 {
                continue;
            }
            let height = bar(*value, most);
            let into = if left + MINUTE == width { &mut now } else { &mut bars };
            let _ = write!(into, "M{left} {HEIGHT}v-{height}h{BAR}v{height}z");
        }
        html! {
            svg class=(self.class) viewBox=(format!("0 0 {width} {HEIGHT}")) preserveAspectRatio="none" role="img"
                aria-label=(self.told()) {
                @if !voids.is_empty() { path class="void" d=(voids) {} }
                @if lines { path class="lines" d=(format!("M0 0H{width}M0 {}H{width}", HEIGHT / 2)) {} }
                path class="base" d=(format!("M0 {HEIGHT}H{width}")) {}
                @if !bars.is_empty() { path class="bars" d=(bars) {} }
                @if !now.is_empty() { path class="bars now" d=(now) {} }
            }
        }
    }

    /// A whole chart with its scale and its times.
    pub fn chart(&self, title: &str) -> Markup {
        let most = round_up(self.peak());
        let time = |place: usize| self.hour.at(place).strftime("%H:%M").to_string();
        html! {
            figure class="chart" {
                figcaption {
                    span class="title" { (title) " " span class="unit" { "per minute" } }
                    span class="sum" { (text::number(self.sum())) " " span class="unit" { "in 1 h" } }
                }
                div class="plot" {
                    div class="scale" aria-hidden="true" {
                        span { (text::number(most)) }
                        span class="half" { @if most.is_multiple_of(2) { (text::number(most / 2)) } @else { (most / 2) ".5" } }
                        span { "0" }
                    }
                    (self.picture(most, true))
                }
                div class="times" aria-hidden="true" {
                    span { (time(0)) }
                    span { (time(MINUTES / 2)) }
                    span { (time(MINUTES - 1)) }
                }
            }
        }
    }

    /// A small one for a row of a table, scaled to its own peak.
    pub fn spark(&self) -> Markup {
        html! { div class="spark" { (self.picture(self.peak().max(1), false)) } }
    }
}

/// How high a bar is; what there is can be seen.
fn bar(value: u64, most: u64) -> u64 {
    let height = u128::from(value) * u128::from(HEIGHT) / u128::from(most.max(1));
    u64::try_from(height).unwrap_or(HEIGHT).clamp(HEIGHT / 50, HEIGHT)
}

/// The next number that makes a scale easy to read: one digit, and zeros.
fn round_up(peak: u64) -> u64 {
    let mut unit = 1_u64;
    loop {
        for times in [2, 3, 4, 5, 6, 8, 10] {
            let most = unit.saturating_mul(times);
            if most >= peak {
                return most;
            }
        }
        unit = unit.saturating_mul(10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_ends_at_a_number_of_one_digit_and_zeros() {
        for (peak, most) in [(0, 2), (1, 2), (3, 3), (7, 8), (11, 20), (226, 300), (801, 1000), (u64::MAX, u64::MAX)] {
            assert_eq!(round_up(peak), most, "{peak}");
        }
    }

    #[test]
    fn the_least_there_is_can_be_seen_and_the_most_fits() {
        assert_eq!((bar(1, 1_000_000), bar(1_000_000, 1_000_000), bar(50, 100)), (20, 1000, 500));
        assert_eq!(bar(u64::MAX, 1), HEIGHT);
    }
}
