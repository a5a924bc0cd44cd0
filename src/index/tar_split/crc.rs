//! The CRC-64 of ISO 3309 as Go's hash/crc64 has it (crc64.ISO), which is CRC-64/GO-ISO of the catalogues. It finds mistakes, not liars: podman
//! compares the digest of the whole tar as well.

const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;

const TABLE: [u64; 256] = table();

#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler, which would refuse it")]
const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut rest = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            rest = if rest & 1 == 1 { rest >> 1 ^ POLYNOMIAL } else { rest >> 1 };
            bit += 1;
        }
        table[byte] = rest;
        byte += 1;
    }
    table
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Crc(u64);

impl Crc {
    pub(super) const fn new() -> Self {
        Self(u64::MAX)
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |crc, byte| {
            let place = usize::from((crc as u8) ^ byte);
            TABLE.get(place).copied().unwrap_or_default() ^ crc >> 8
        });
    }

    pub(super) const fn sum(self) -> u64 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of the catalogues, and sums that Go's crc64_test.go (1.19) has.
    #[test]
    fn sums_are_those_of_go() {
        let cases: [(&str, u64); 4] = [
            ("", 0),
            ("a", 0x3420_0000_0000_0000),
            ("ab", 0x36c4_2000_0000_0000),
            ("123456789", 0xb909_56c7_75a4_1001),
        ];
        for (text, sum) in cases {
            let mut crc = Crc::new();
            text.as_bytes().chunks(2).for_each(|part| crc.update(part));
            assert_eq!(crc.sum(), sum, "{text}");
        }
    }
}
