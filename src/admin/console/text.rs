//! Numbers, times and other people's texts, as they stand on the page.

use jiff::Timestamp;
use maud::{Markup, html};

/// As much of somebody else's text as is of use here.
const LONGEST: usize = 300;

/// `12 345`, with spaces that do not break.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 charge`, `2 charges`.
pub fn count(what: u64, one: &str) -> String {
    format!("{} {one}{}", number(what), if what == 1 { "" } else { "s" })
}

/// A length of time, roughly.
pub fn seconds(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// A bound of a histogram: `≤ 0.1 ms`.
pub fn at_most(seconds: f64) -> String {
    if seconds.is_infinite() {
        "over 10 s".to_owned()
    } else if seconds < 1.0 {
        format!("≤ {} ms", seconds * 1000.0)
    } else {
        format!("≤ {seconds} s")
    }
}

/// `97.3 %`; a dash without any. Only all is 100, and only none is 0.
pub fn ratio(part: u64, of: u64) -> String {
    let Some(permille) = (u128::from(part) * 1000).checked_div(u128::from(of)) else { return "–".to_owned() };
    let permille = if part > 0 { permille.max(1) } else { 0 };
    format!("{}.{} %", permille / 10, permille % 10)
}

/// An amount with so many digits that a column of them is even; `<` when there is not that much.
pub fn dollars(cost: &str) -> String {
    const DIGITS: usize = 6;
    let (whole, fraction) = cost.split_once('.').unwrap_or((cost, ""));
    let kept: String = fraction.chars().chain(std::iter::repeat('0')).take(DIGITS).collect();
    let is_nothing = |digits: &str| digits.bytes().all(|digit| digit == b'0');
    if is_nothing(whole) && is_nothing(&kept) && !is_nothing(fraction) {
        return "<$0.000001".to_owned();
    }
    format!("${whole}.{kept}")
}

/// The time of the day, and the day when it is another one than `now`'s. UTC.
pub fn moment(at: Timestamp, now: Timestamp) -> Markup {
    let form = if at.strftime("%F").to_string() == now.strftime("%F").to_string() { "%T" } else { "%F %T" };
    html! { time datetime=(format!("{at:.0}")) { (at.strftime(form).to_string()) } }
}

/// A text of somebody else's: on one line, of a bounded length, and unable to turn what stands around it.
pub fn plain(text: &str) -> String {
    let mut plain = String::new();
    for (n, c) in text.chars().enumerate() {
        if n == LONGEST {
            plain.push('…');
            break;
        }
        if is_invisible(c) { plain.extend(c.escape_unicode()) } else { plain.push(c) }
    }
    plain
}

/// [`plain`], for the page.
pub fn foreign(text: &str) -> Markup {
    html! { bdi { (plain(text)) } }
}

/// Controls, and whatever has no width of its own and changes how the rest is read.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// A text of the other side's without whatever may be an e-mail address or is a secret.
pub fn discreet(text: &str, secrets: &[&str]) -> String {
    let mut text = text.to_owned();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret, "(secret)");
    }
    let is_part = |c: char| c.is_alphanumeric() || "@.!#$%&'*+/=?^_`|~-".contains(c);
    let mut told = String::new();
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        told.push_str(if word.contains('@') || word.contains("%40") { "(e-mail)" } else { word });
        let next = after.chars().next().map_or(0, char::len_utf8);
        told.push_str(&after[..next]);
        rest = &after[next..];
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_lengths_of_time_rough() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1\u{202f}000", "1\u{202f}234\u{202f}567"]);
        assert_eq!((count(1, "charge"), count(0, "charge")), ("1 charge".into(), "0 charges".into()));
        assert_eq!(
            [-5, 119, 120, 7199, 7200, 180_000].map(seconds),
            ["0 s", "119 s", "2 min", "119 min", "2 h", "2 days"]
        );
        assert_eq!([0.000_05, 0.025, 1.0, f64::INFINITY].map(at_most), ["≤ 0.05 ms", "≤ 25 ms", "≤ 1 s", "over 10 s"]);
    }

    #[test]
    fn a_ratio_is_rounded_down_and_nothing_of_nothing_is_a_dash() {
        for (part, of, told) in
            [(0, 0, "–"), (0, 5, "0.0 %"), (1, 1_000_000, "0.1 %"), (999_999, 1_000_000, "99.9 %"), (7, 7, "100.0 %")]
        {
            assert_eq!(ratio(part, of), told);
        }
    }

    #[test]
    fn an_amount_has_six_digits_and_never_looks_like_nothing() {
        for (cost, told) in [
            ("0", "$0.000000"),
            ("12", "$12.000000"),
            ("0.42", "$0.420000"),
            ("0.004166666666666667", "$0.004166"),
            ("0.0000004", "<$0.000001"),
        ] {
            assert_eq!(dollars(cost), told);
        }
    }

    #[test]
    fn what_cannot_be_seen_is_shown_and_what_is_long_is_cut() {
        assert_eq!(plain("a\u{202e}b\u{200b}c\nd\u{7}é字"), "a\\u{202e}b\\u{200b}c\\u{a}d\\u{7}é字");
        assert_eq!(plain(&"x".repeat(1000)).chars().count(), LONGEST + 1);
        assert_eq!(foreign("<b>&\"").into_string(), "<bdi>&lt;b&gt;&amp;&quot;</bdi>");
    }

    #[test]
    fn e_mail_addresses_and_secrets_are_left_out_wherever_they_stand() {
        for (said, told) in [
            ("no account a.b+c@example.com here", "no account (e-mail) here"),
            (r#"{"email":"a@example.com","code":3}"#, r#"{"email":"(e-mail)","code":3}"#),
            ("<a@b.c>, é@d", "<(e-mail)>, (e-mail)"),
            ("no user email=a.b%40example.com", "no user (e-mail)"),
            ("status 422: hunter2 is wrong", "status 422: (secret) is wrong"),
            ("", ""),
        ] {
            assert_eq!(discreet(said, &["hunter2", ""]), told);
        }
    }
}
