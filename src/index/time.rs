//! The calendar: times of RFC 3339, as Go writes them, in seconds since 1970 and back. Also years of more than four digits and before year 0, which
//! RFC 3339 does not have, and for which no library of dates has room.

use super::Time;

/// Parses `2020-09-13T12:26:40.5Z` and the like; `None` for anything else. Digits after the ninth of a fraction are dropped.
pub(crate) fn parse(text: &str) -> Option<Time> {
    let mut rest = text.as_bytes();
    let year = year(&mut rest)?;
    let month = after(&mut rest, b"-", 1..=12)?;
    let day = after(&mut rest, b"-", 1..=days_in(year, month))?;
    let hour = after(&mut rest, b"Tt", 0..=23)?;
    let minute = after(&mut rest, b":", 0..=59)?;
    let second = after(&mut rest, b":", 0..=59)?;
    let nanos = fraction(&mut rest)?;
    let offset = offset(&mut rest)?;
    let of_day = hour * 3_600 + minute * 60 + second - offset;
    let secs = days_since_1970(year, month, day) * 86_400 + i128::from(of_day);
    let time = i64::try_from(secs).map_or_else(|_| Time::nearest(secs > 0), |secs| Time { secs, nanos });
    rest.is_empty().then_some(time)
}

/// Takes at least four digits, with a sign where they are before year 0.
fn year(rest: &mut &[u8]) -> Option<i128> {
    let (sign, digits) = rest.strip_prefix(b"-").map_or((1, *rest), |digits| (-1, digits));
    let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, tail) = digits.split_at_checked(len).filter(|_| len >= 4)?;
    *rest = tail;
    // Far beyond all that a time can hold.
    let most = 1_000_000_000_000_000;
    Some(sign * digits.iter().fold(0, |year: i128, digit| most.min(year * 10 + i128::from(digit - b'0'))))
}

/// Takes exactly `digits` decimal digits.
fn number(rest: &mut &[u8], digits: usize) -> Option<i64> {
    let (head, tail) = rest.split_at_checked(digits)?;
    *rest = tail;
    head.iter().try_fold(0, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

/// Takes one of the separators, then two digits in the range.
fn after(rest: &mut &[u8], separators: &[u8], range: std::ops::RangeInclusive<i64>) -> Option<i64> {
    let (first, tail) = rest.split_first()?;
    *rest = tail;
    let value = separators.contains(first).then(|| number(rest, 2))??;
    range.contains(&value).then_some(value)
}

fn fraction(rest: &mut &[u8]) -> Option<u32> {
    let Some(tail) = rest.strip_prefix(b".") else { return Some(0) };
    let digits = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (fraction, tail) = tail.split_at_checked(digits)?;
    *rest = tail;
    let padded = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    (digits > 0).then(|| padded.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0')))
}

/// Seconds that local time is ahead of UTC.
fn offset(rest: &mut &[u8]) -> Option<i64> {
    let (sign, tail) = rest.split_first()?;
    *rest = tail;
    let sign = match sign {
        b'Z' | b'z' => return Some(0),
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let hours = number(rest, 2).filter(|hours| *hours <= 23)?;
    let minutes = after(rest, b":", 0..=59)?;
    Some(sign * (hours * 3_600 + minutes * 60))
}

const fn is_leap(year: i128) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_in(year: i128, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Days from 1970-01-01 in the proleptic Gregorian calendar. Years are counted from March, so that a leap day ends its year.
const fn days_since_1970(year: i128, month: i64, day: i64) -> i128 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let before_this_year = year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    // 306 is the days from March to December: March of year 0 to January of year 1. 719,162 days are from there to 1970.
    before_this_year + ((month * 153 + 2) / 5 + day - 1 - 306 - 719_162) as i128
}

/// Year, month and day of a count of days since 1970-01-01.
///
/// Years are taken from March on, in eras of 400 years, which all have the same number of days.
pub(crate) fn date(days: i64) -> (i64, i64, i64) {
    const ERA: i64 = 146_097;
    // From 1970-01-01 to 0000-03-01.
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days.div_euclid(ERA), days.rem_euclid(ERA));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// Whether Go reads a time (RFC 3339, in capitals and with years of four digits).
pub(crate) fn is_of_go(text: &str) -> bool {
    let has_four_digits = text.get(4..5) == Some("-") && !text.starts_with('-');
    has_four_digits && !text.contains(['t', 'z']) && parse(text).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates_and_dates_days() {
        // Steps of a prime number over some 4,000 years on each side of 1970.
        for days in (-1_500_000..1_500_000).step_by(997) {
            let (year, month, day) = date(days);
            assert_eq!(days_since_1970(year.into(), month, day), days.into());
            assert!((1..=days_in(year.into(), month)).contains(&day));
        }
    }

    fn at(secs: i64, nanos: u32) -> Option<Time> {
        Some(Time { secs, nanos })
    }

    #[test]
    fn times_before_and_after_1970() {
        assert_eq!(parse("1970-01-01T00:00:00Z"), at(0, 0));
        assert_eq!(parse("2020-09-13T12:26:40Z"), at(1_600_000_000, 0));
        assert_eq!(parse("0001-01-01T00:00:00Z"), at(-62_135_596_800, 0));
        assert_eq!(parse("9999-12-31T23:59:59Z"), at(253_402_300_799, 0));
        assert_eq!(parse("0000-03-01T00:00:00Z"), at(-62_162_035_200, 0));
        assert_eq!(parse("2000-02-29T00:00:00Z"), at(951_782_400, 0));
    }

    #[test]
    fn fractions_and_offsets() {
        assert_eq!(parse("1969-12-31T23:59:58.5Z"), at(-2, 500_000_000));
        assert_eq!(parse("2020-09-13T12:26:40.000000001Z"), at(1_600_000_000, 1));
        assert_eq!(parse("2020-09-13T12:26:40.1234567899Z"), at(1_600_000_000, 123_456_789));
        assert_eq!(parse("2020-09-13T14:26:40+02:00"), at(1_600_000_000, 0));
        assert_eq!(parse("2020-09-13T08:56:40.25-03:30"), at(1_600_000_000, 250_000_000));
    }

    #[test]
    fn years_that_rfc_3339_does_not_have() {
        assert_eq!(parse("10000-01-01T00:00:00Z"), at(253_402_300_800, 0));
        assert_eq!(parse("-0001-01-01T00:00:00Z"), at(-62_198_755_200, 0));
        assert_eq!(parse("292277026596-12-04T15:30:07.5Z"), at(i64::MAX, 500_000_000));
        assert_eq!(parse("-292277022657-01-27T08:29:52Z"), at(i64::MIN, 0));
        for text in ["292277026596-12-04T15:30:08Z".to_owned(), format!("{}-01-01T00:00:00Z", "9".repeat(300))] {
            assert_eq!(parse(&text), Some(Time::LATEST));
            assert_eq!(parse(&format!("-{text}")), Some(Time::EARLIEST));
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2020",
            "2020-09-13",
            "2020-9-13T12:26:40Z",
            "2020-13-01T00:00:00Z",
            "2020-02-30T00:00:00Z",
            "2100-02-29T00:00:00Z",
            "2020-01-01T24:00:00Z",
            "2020-01-01T00:00:60Z",
            "2020-01-01T00:00:00",
            "2020-01-01T00:00:00.Z",
            "2020-01-01T00:00:00Zx",
            "2020-01-01T00:00:00+24:00",
            "+020-01-01T00:00:00Z",
            "--2020-01-01T00:00:00Z",
            "-020-01-01T00:00:00Z",
            "2020-01-01T00:00:0éZ",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_what_go_reads_is_a_time_of_go() {
        for good in [
            "2020-02-29T23:59:59Z",
            "1970-01-01T00:00:00Z",
            "2021-01-01T00:00:00.123456789+02:00",
            "0001-01-01T00:00:00-00:30",
        ] {
            assert!(is_of_go(good), "{good}");
        }
        let bad = [
            "",
            "2021-01-01t00:00:00Z",
            "2021-01-01T00:00:00z",
            "10000-01-01T00:00:00Z",
            "-0001-01-01T00:00:00Z",
            "2021-02-29T00:00:00Z",
            "2021-13-01T00:00:00Z",
            "2021-01-01T24:00:00Z",
            "2021-01-01 00:00:00Z",
            "2021-01-01T00:00:00",
            "2021-01-01T00:00:00.Z",
            "2021-01-01T00:00:00+2:00",
            "2021-01-01T00:00:60Z",
            "+021-01-01T00:00:00Z",
            "2021-01-01T00:00:00++1:00",
            "2021-01-01T00:00:00+01:+1",
        ];
        for bad in bad {
            assert!(!is_of_go(bad), "{bad}");
        }
    }
}
