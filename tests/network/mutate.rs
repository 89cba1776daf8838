//! Bytes that look random and are the same every time.

/// Splitmix.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// Changes, cuts, repeats or lengthens a message, or puts a length into it that lies.
pub(crate) fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 | 1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                let count = random.below(40);
                bytes.extend(random.bytes(count));
            }
            // The markers of lengths in 2, 4, 8 and 16 bytes, alone and with 2^62 behind them.
            4 if at < bytes.len() => bytes[at] = 251 + random.below(4) as u8,
            5 => drop(bytes.splice(at..at, [253, 0, 0, 0, 0, 0, 0, 0, 0x40])),
            _ => {
                let run =
                    bytes.get(at..(at + random.below(60)).min(bytes.len())).unwrap_or_default().to_vec();
                bytes.splice(at..at, run);
            }
        }
    }
}

/// Changes a text of JSON so that many of the results are still JSON: numbers and words are exchanged.
pub(crate) fn mutate_json(random: &mut Random, text: &str) -> Vec<u8> {
    let mut text = text.to_owned();
    for _ in 0..=random.below(3) {
        let starts: Vec<usize> = text
            .match_indices(|c: char| c.is_ascii_digit())
            .map(|(at, _)| at)
            .filter(|at| *at == 0 || !text.as_bytes()[at - 1].is_ascii_digit())
            .collect();
        let Some(at) = starts.get(random.below(starts.len())).copied() else { break };
        let end = text[at..].find(|c: char| !c.is_ascii_digit()).map_or(text.len(), |n| at + n);
        text.replace_range(at..end, NUMBERS[random.below(NUMBERS.len())]);
    }
    let mut bytes = text.into_bytes();
    if random.below(3) == 0 {
        mutate(random, &mut bytes);
    }
    bytes
}

const NUMBERS: [&str; 14] = [
    "0",
    "1",
    "2",
    "3",
    "7",
    "-1",
    "65535",
    "4294967295",
    "18446744073709551615",
    "1e308",
    "1e999",
    "NaN",
    "null",
    "[[[[[[[[]]]]]]]]",
];
