//! Sizes, times and layers as they are typed.

use std::time::Duration;

use crate::serve::options::LayerChoice;

/// A week: whoever waits longer has mistyped a unit.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Bytes, or with K, M, G or KiB, MiB, GiB: powers of 1024 all of them, as podman has it.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text, "512, 64M or 2GiB")?;
    let shift = match unit {
        "" => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return Err(format!("{unit:?} is not a unit of size: K, M, G, KiB, MiB or GiB")),
    };
    number.checked_mul(1 << shift).ok_or_else(|| "larger than any blob".to_owned())
}

/// With ms, s or m; a bare number is seconds.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text, "500ms, 8s or 2m")?;
    let time = match unit {
        "ms" => Duration::from_millis(number),
        "" | "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => return Err(format!("{unit:?} is not a unit of time: ms, s or m")),
    };
    match time {
        Duration::ZERO => Err("no time at all is never enough".to_owned()),
        time if time > LONGEST => Err("longer than a week".to_owned()),
        time => Ok(time),
    }
}

fn split<'a>(text: &'a str, such_as: &str) -> Result<(u64, &'a str), String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = |_| format!("{text:?} does not start with a whole number in range: write it as {such_as}");
    let number = number.parse().map_err(wrong)?;
    Ok((number, unit))
}

/// The number of a layer, 0 the lowest, or its digest.
pub(super) fn layer(text: &str) -> Result<LayerChoice, String> {
    if let Ok(number) = text.parse() {
        return Ok(LayerChoice::Number(number));
    }
    text.parse().map(LayerChoice::Digest).map_err(|_| "neither a number nor a digest (sha256:...)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Digest;

    #[test]
    fn sizes() {
        let cases = [("0", 0), ("17", 17), ("1K", 1024), ("1KiB", 1024), ("3M", 3 << 20), ("3MiB", 3 << 20)];
        for (text, bytes) in cases.into_iter().chain([("2G", 2 << 30), ("2GiB", 2 << 30)]) {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for wrong in ["", "K", "-1", "1.5M", "1 M", "1T", "1kib", "99999999999G", "18446744073709551616"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times() {
        let cases = [("8", 8000), ("8s", 8000), ("500ms", 500), ("2m", 120_000), ("10080m", 604_800_000)];
        for (text, millis) in cases {
            assert_eq!(time(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for wrong in ["", "0", "0ms", "s", "1h", "-1s", "1.5s", "10081m", "18446744073709551615m"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn layers() {
        let digest = Digest::of(b"");
        assert_eq!(layer("3"), Ok(LayerChoice::Number(3)));
        assert_eq!(layer(&digest.to_string()), Ok(LayerChoice::Digest(digest)));
        assert!(layer("top").is_err() && layer("-1").is_err() && layer("sha256:12").is_err());
    }
}
