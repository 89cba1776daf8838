//! Dates as people and programs read them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `2026-11-24`, in UTC.
pub(crate) fn day(time: SystemTime) -> String {
    let mut text = utc(time);
    text.truncate(10);
    text
}

/// `2026-11-24 17:05`, in UTC.
pub(crate) fn minute(time: SystemTime) -> String {
    let mut text = utc(time).replace('T', " ");
    text.truncate(16);
    text
}

/// `2026-11-24T17:05:00Z`. What was before 1970 counts as its beginning.
pub(crate) fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / DAY, seconds % DAY);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Whole days from `now` to `time`, negative when it is over.
pub(crate) fn days_left(time: SystemTime, now: SystemTime) -> i64 {
    let days = |span: Duration| i64::try_from(span.as_secs() / DAY).unwrap_or(i64::MAX);
    match time.duration_since(now) {
        Ok(left) => days(left),
        Err(over) => -days(over.duration()) - 1,
    }
}

/// Year, month and day of the Gregorian calendar, so many days after 1970-01-01: years begin in March, so that the odd
/// day is their last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

const DAY: u64 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        for (seconds, expect) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_799, "2000-02-29T23:59:59Z"),
            (1_795_539_900, "2026-11-24T17:05:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), expect);
        }
        let time = UNIX_EPOCH + Duration::from_secs(1_795_539_900);
        assert_eq!((day(time), minute(time)), ("2026-11-24".into(), "2026-11-24 17:05".into()));
        assert_eq!((days_left(time, time - Duration::from_secs(DAY + 1)), days_left(time, time)), (1, 0));
        assert_eq!(days_left(time, time + Duration::from_secs(1)), -1);
    }
}
