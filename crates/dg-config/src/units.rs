//! Lengths of time, amounts of memory and network addresses as people write them.

use std::net::Ipv6Addr;
use std::time::Duration;

/// Reads `250ms`, `3s`, `5min`, `2h` or `1d`: a whole number and its unit.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let ms = TIME.iter().find(|(name, _)| *name == unit)?.1;
    number.checked_mul(ms).map(Duration::from_millis)
}

/// A length of time in the largest unit that leaves a whole number.
pub fn duration_text(time: Duration) -> String {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    largest_unit(ms, &TIME)
}

/// Reads `512MiB`, `24GiB` or `1TiB`: a whole number and its unit.
pub fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let each = MEMORY.iter().find(|(name, _)| *name == unit)?.1;
    number.checked_mul(each)
}

/// An amount of memory in the largest unit that leaves a whole number.
pub fn bytes_text(bytes: u64) -> String {
    largest_unit(bytes, &MEMORY)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

fn largest_unit(amount: u64, units: &[(&str, u64)]) -> String {
    let whole = units.iter().rev().find(|(_, each)| amount > 0 && amount.is_multiple_of(*each));
    match whole.or_else(|| units.first()) {
        Some((name, each)) => format!("{}{name}", amount / each),
        None => amount.to_string(),
    }
}

/// A host and perhaps a port: `gpu-1`, `10.0.0.7:7443`, `[fe80::1]:7443`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// A name or an IP address; an IPv6 address without its brackets.
    pub host: String,
    /// The port, if one is named.
    pub port: Option<u16>,
}

impl Address {
    /// Reads an address.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']')?;
                host.parse::<Ipv6Addr>().ok()?;
                (host, port)
            }
            None => {
                let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                (is_host(host).then_some(host)?, port)
            }
        };
        let port = match port {
            "" => None,
            port => Some(port.strip_prefix(':')?.parse().ok().filter(|n| *n > 0)?),
        };
        Some(Self { host: host.to_string(), port })
    }

    /// Whether it is on this machine whoever asks: `localhost`, `127.0.0.0/8`, `::1`.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.ip().is_some_and(|ip| ip.is_loopback())
    }

    /// Whether it stands for all addresses of a machine, so that nobody can be sent to it.
    pub fn is_unspecified(&self) -> bool {
        self.ip().is_some_and(|ip| ip.is_unspecified())
    }

    fn ip(&self) -> Option<std::net::IpAddr> {
        self.host.parse().ok()
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let brackets = self.host.contains(':');
        let (open, close) = if brackets { ("[", "]") } else { ("", "") };
        write!(f, "{open}{}{close}", self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// An IPv4 address, or labels of letters, digits and hyphens with dots between them. Digits and dots alone can only
/// be meant as an address.
fn is_host(text: &str) -> bool {
    let is_label = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        plain
            && !label.is_empty()
            && label.len() <= LABEL_MAX
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return text.parse::<std::net::Ipv4Addr>().is_ok();
    }
    text.len() <= HOST_MAX && text.split('.').all(is_label)
}

const TIME: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
const MEMORY: [(&str, u64); 4] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];
/// Characters of a host name, and of each of its parts.
const HOST_MAX: usize = 253;
const LABEL_MAX: usize = 63;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, ms) in [("250ms", 250), ("3s", 3000), ("5 min", 300_000), ("2h", 7_200_000), ("0s", 0)] {
            assert_eq!(duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["3", "s", "-1s", "1.5s", "3 sec", "3m", "", "99999999999999999999s", "9999999999999999d"]
        {
            assert_eq!(duration(bad), None, "{bad}");
        }
        for text in ["250ms", "3s", "5min", "36h", "2d", "0ms"] {
            assert_eq!(duration_text(duration(text).unwrap()), text);
        }
    }

    #[test]
    fn memory_has_units() {
        assert_eq!((bytes("24GiB"), bytes("1 TiB")), (Some(24 << 30), Some(1 << 40)));
        for bad in ["24", "24GB", "GiB", "-1GiB", "99999999999TiB"] {
            assert_eq!(bytes(bad), None, "{bad}");
        }
        assert_eq!((bytes_text(24 << 30), bytes_text(1536 << 20)), ("24GiB".into(), "1536MiB".into()));
    }

    #[test]
    fn addresses_are_hosts_with_or_without_port() {
        for text in
            ["gpu-1", "gpu-1.lab.example:7443", "10.0.0.7", "127.0.0.1:1", "[fe80::1]:7443", "[::1]", "a_b"]
        {
            assert_eq!(Address::parse(text).unwrap().to_string(), text);
        }
        for bad in [
            "",
            ":1",
            "a:",
            "a:0",
            "a:65536",
            "a:b",
            "a b",
            "-a",
            "a-",
            "a..b",
            "10.0.0.256",
            "10.0.0",
            "::1",
            "[x]:1",
            "[::1]1",
            "http://a",
            "a/b",
        ] {
            assert_eq!(Address::parse(bad), None, "{bad}");
        }
        let of = |text| Address::parse(text).unwrap();
        assert!(
            of("127.0.0.2:1").is_loopback() && of("localhost").is_loopback() && of("[::1]:1").is_loopback()
        );
        assert!(
            of("0.0.0.0:1").is_unspecified() && of("[::]:1").is_unspecified() && !of("gpu").is_unspecified()
        );
    }
}
