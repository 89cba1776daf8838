//! One text in an EXIF block: TIFF header → Exif directory → UserComment.

/// Longest text that fits a JPEG segment beside what surrounds it.
pub(crate) const TEXT_BYTES_MAX: usize = 65_000;

/// An EXIF block with this text, or nothing if it is too long. The text must be ASCII.
pub(crate) fn block(text: &str) -> Option<Vec<u8>> {
    if text.len() > TEXT_BYTES_MAX || !text.is_ascii() {
        return None;
    }
    let mut b = b"II*\0".to_vec();
    let directory = |b: &mut Vec<u8>, tag: u16, kind: u16, count: u32, value: u32| {
        b.extend(1u16.to_le_bytes());
        b.extend(tag.to_le_bytes());
        b.extend(kind.to_le_bytes());
        b.extend(count.to_le_bytes());
        b.extend(value.to_le_bytes());
        b.extend(0u32.to_le_bytes());
    };
    b.extend(FIRST.to_le_bytes());
    directory(&mut b, EXIF_POINTER, LONG, 1, FIRST + DIRECTORY_BYTES);
    let count = (CHARSET.len() + text.len()) as u32;
    directory(&mut b, USER_COMMENT, UNDEFINED, count, FIRST + 2 * DIRECTORY_BYTES);
    b.extend(CHARSET);
    b.extend(text.as_bytes());
    Some(b)
}

/// The UserComment of an EXIF block, if it is one that [`block`] could have made.
pub(crate) fn text(exif: &[u8]) -> Option<String> {
    if exif.get(..4)? != b"II*\0" {
        return None;
    }
    let pointer = entry(exif, u32_at(exif, 4)? as usize, EXIF_POINTER)?;
    let (_, at) = pointer;
    let (count, at) = entry(exif, at as usize, USER_COMMENT)?;
    let start = at as usize;
    let bytes = exif.get(start..start.checked_add(count as usize)?)?;
    String::from_utf8(bytes.strip_prefix(CHARSET)?.to_vec()).ok()
}

/// Count and value of the entry `tag` of the directory at `at`.
fn entry(exif: &[u8], at: usize, tag: u16) -> Option<(u32, u32)> {
    let entries = u16_at(exif, at)? as usize;
    let mut places = (0..entries.min(ENTRIES_MAX)).map(|i| at + 2 + 12 * i);
    let place = places.find(|p| u16_at(exif, *p) == Some(tag))?;
    Some((u32_at(exif, place + 4)?, u32_at(exif, place + 8)?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

const FIRST: u32 = 8;
const DIRECTORY_BYTES: u32 = 2 + 12 + 4;
const EXIF_POINTER: u16 = 0x8769;
const USER_COMMENT: u16 = 0x9286;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;
const CHARSET: &[u8] = b"ASCII\0\0\0";
const ENTRIES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_back() {
        for given in ["", "{\"a\": 1}", &"x".repeat(TEXT_BYTES_MAX)] {
            assert_eq!(text(&block(given).unwrap()).as_deref(), Some(given));
        }
        assert_eq!(block(&"x".repeat(TEXT_BYTES_MAX + 1)), None);
        assert_eq!(block("é"), None);
    }

    #[test]
    fn damaged_blocks_are_no_text_and_no_panic() {
        let good = block("{\"a\": 1}").unwrap();
        for cut in 0..good.len() {
            assert_eq!(text(&good[..cut]), None, "{cut}");
        }
        for i in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[i] = value;
                let _ = text(&bad);
            }
        }
    }
}
