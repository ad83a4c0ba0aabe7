//! Texts and times, for people and from people.

use std::io::{self, Write};

use anyhow::anyhow;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// Reads a time that was given with `flag`: RFC 3339, or a date, which is its first moment in UTC.
///
/// # Errors
/// When it is neither.
pub fn time(flag: &str, text: Option<&str>) -> anyhow::Result<Option<Timestamp>> {
    let Some(text) = text else { return Ok(None) };
    let date = || text.parse::<Date>().ok().filter(|_| text.len() == "2026-11-22".len());
    let day = || date()?.to_zoned(TimeZone::UTC).ok().map(|midnight| midnight.timestamp());
    text.parse().ok().or_else(day).map(Some).ok_or_else(|| {
        anyhow!("{flag}: {text:?} is no time such as 2026-11-22T08:00:00Z and no date such as 2026-11-22")
    })
}

/// A time for people, to the second.
pub fn moment(at: Timestamp) -> String {
    format!("{at:.0}")
}

/// How long ago something was, roughly; a time yet to come is `now`.
pub fn age(at: Timestamp, now: Timestamp) -> String {
    match now.duration_since(at).as_secs() {
        ..=0 => "now".to_owned(),
        seconds @ 1..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A text of somebody else's on one line of a terminal, which it must not be able to command.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { plain.extend(c.escape_default()) } else { plain.push(c) }
    }
    plain
}

/// `3 charges`, `1 charge`.
pub fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Writes rows in columns as wide as their widest cell; columns whose place is in `right` are flush right.
pub fn columns(rows: &[Vec<String>], right: &[usize], out: &mut impl Write) -> io::Result<()> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|n| rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    for row in rows {
        let mut line = String::new();
        for (n, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            let (before, after) = if right.contains(&n) { (padding.as_str(), "") } else { ("", padding.as_str()) };
            line = line + before + cell + after + "  ";
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_rfc_3339_or_a_date_in_utc() {
        for (text, expected) in [
            ("2026-11-22", "2026-11-22T00:00:00Z"),
            ("2026-11-22T08:00:00Z", "2026-11-22T08:00:00Z"),
            ("2026-11-22T08:00:00.5+02:00", "2026-11-22T06:00:00.5Z"),
        ] {
            let parsed = time("--since", Some(text)).expect("a time").expect("given");
            assert_eq!(parsed.to_string(), expected);
        }
        assert_eq!(time("--since", None).expect("nothing to complain about"), None);
    }

    #[test]
    fn what_is_no_time_is_an_error_of_one_line_that_names_the_flag() {
        for odd in ["", "yesterday", "2026-13-01", "20261122", "2026-11-22T08:00:00", "08:00", "1795334400", "a\nb"] {
            let error = time("--until", Some(odd)).expect_err(odd).to_string();
            assert!(error.starts_with("--until: ") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn an_age_is_told_in_one_unit() {
        let now = Timestamp::from_second(1_800_000_000).expect("valid");
        for (seconds, expected) in [(-5, "now"), (0, "now"), (119, "119 s"), (600, "10 min"), (7200, "2 h")] {
            assert_eq!(age(now - jiff::SignedDuration::from_secs(seconds), now), expected);
        }
        assert_eq!(age(now - jiff::SignedDuration::from_hours(24 * 90), now), "90 days");
    }

    #[test]
    fn what_others_wrote_cannot_command_a_terminal() {
        assert_eq!(plain("no\u{1b}[2J\nfunds \u{7f}é"), "no\\u{1b}[2J\\nfunds \\u{7f}é");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut out = Vec::new();
        let rows = [vec!["a".to_owned(), "1".to_owned(), "x".to_owned()], vec!["bbé".to_owned(), "22".to_owned()]];
        columns(&rows, &[1], &mut out).expect("written");
        assert_eq!(String::from_utf8(out).expect("text"), "a     1  x\nbbé  22\n");
    }
}
