//! How figures, times and modes are shown to people.

use crate::index::time::date;

/// Bytes with a unit of a power of 1024 and one decimal: `17 B`, `1.2 MiB`.
pub(super) fn bytes(count: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut tenths = u128::from(count).saturating_mul(10);
    let mut shown = format!("{count} B");
    for unit in units {
        if tenths < 10_240 {
            break;
        }
        tenths = tenths.div_ceil(1024);
        shown = format!("{}.{} {unit}", tenths / 10, tenths % 10);
    }
    shown
}

/// Text from elsewhere for a terminal: what it would obey is written out.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            control if control.is_control() => shown.extend(control.escape_default()),
            plain => shown.push(plain),
        }
    }
    shown
}

/// `2023-04-05 06:07:08` (UTC, proleptic Gregorian calendar) of seconds since 1970.
pub(super) fn time(seconds: i64) -> String {
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// `drwxr-xr-x`, as ls(1) has it. `kind` is the letter of the type.
pub(super) fn mode(kind: char, mode: u16) -> String {
    let bit = |bit: u16, letter: char| if mode & bit == 0 { '-' } else { letter };
    let special = |exec: u16, special: u16, both: char, alone: char| match (mode & special != 0, mode & exec != 0) {
        (false, false) => '-',
        (false, true) => 'x',
        (true, true) => both,
        (true, false) => alone,
    };
    [
        kind,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        special(0o100, 0o4000, 's', 'S'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        special(0o010, 0o2000, 's', 'S'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        special(0o001, 0o1000, 't', 'T'),
    ]
    .iter()
    .collect()
}

/// Which side of its column a text stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// Rows of cells, each column as wide as its widest cell. The last column is not padded.
pub(super) fn table(sides: &[Side], rows: &[Vec<String>]) -> String {
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..sides.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).zip(sides).map(|((cell, &width), side)| match side {
            Side::Left => format!("{cell:<width$}"),
            Side::Right => format!("{cell:>width$}"),
        });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        let cases = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1 << 20, "1.0 MiB"), (1_300_000, "1.3 MiB")];
        for (count, shown) in cases.into_iter().chain([(u64::MAX, "16.0 EiB")]) {
            assert_eq!(bytes(count), shown);
        }
    }

    #[test]
    fn times_of_all_ages() {
        let cases = [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_827_696, "2000-02-29 12:34:56"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (-62_135_596_800, "0001-01-01 00:00:00"),
        ];
        for (seconds, shown) in cases {
            assert_eq!(time(seconds), shown);
        }
        // No overflow at either end.
        assert!(time(i64::MAX).len() > 19 && time(i64::MIN).len() > 19);
    }

    #[test]
    fn modes_are_those_of_ls() {
        assert_eq!(mode('-', 0o644), "-rw-r--r--");
        assert_eq!(mode('d', 0o1777), "drwxrwxrwt");
        assert_eq!(mode('-', 0o6755), "-rwsr-sr-x");
        assert_eq!(mode('-', 0o7000), "---S--S--T");
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            vec!["a".to_owned(), "1".to_owned(), "x".to_owned()],
            vec!["long".to_owned(), "100".to_owned(), String::new()],
        ];
        assert_eq!(table(&[Side::Left, Side::Right, Side::Left], &rows), "a       1  x\nlong  100\n");
    }

    #[test]
    fn text_of_others_does_not_reach_a_terminal_as_it_is() {
        assert_eq!(printable("a\x1b[31mb\nc\u{9b}ü"), "a\\u{1b}[31mb\\nc\\u{9b}ü");
    }
}
