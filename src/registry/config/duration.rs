//! Durations as Go writes them: `200ms`, `1.5s`, `1m30s`.

use std::time::Duration;

/// Nanoseconds of each unit, the longer names first.
const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("μs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3600e9)];

/// As time.ParseDuration of Go reads it, but for what is below zero.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let end = rest.find(|char: char| !(char.is_ascii_digit() || char == '.'))?;
        let (number, behind) = rest.split_at_checked(end)?;
        let (unit, nanos) = UNITS.iter().find(|(unit, _)| behind.starts_with(unit))?;
        if !number.contains(|char: char| char.is_ascii_digit()) {
            return None;
        }
        let seconds = number.parse::<f64>().ok()? * nanos / 1e9;
        total = total.checked_add(Duration::try_from_secs_f64(seconds).ok()?)?;
        rest = behind.get(unit.len()..)?;
    }
    (!text.is_empty() && text != "+").then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let cases = [
            ("200ms", Some(200_000)),
            ("1.5s", Some(1_500_000)),
            ("1m30s", Some(90_000_000)),
            ("2h", Some(7_200_000_000)),
            ("+3us", Some(3)),
            (".5s", Some(500_000)),
            ("1.s", Some(1_000_000)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("+", None),
            ("30", None),
            ("-1s", None),
            ("1x", None),
            ("s", None),
            (".s", None),
            ("1.2.3s", None),
            ("1s ", None),
            ("99999999999999999999h", None),
        ];
        for (text, micros) in cases {
            assert_eq!(parse(text), micros.map(Duration::from_micros), "{text:?}");
        }
    }
}
