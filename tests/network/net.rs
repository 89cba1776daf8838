//! Two hosts on one machine: network namespaces with a cable between them, and rules for what the cable loses.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Two namespaces, joined by a pair of virtual Ethernet devices. Dropping it takes them away.
pub(crate) struct Net {
    hosts: [String; 2],
}

impl Net {
    pub(crate) const ADDRESSES: [&str; 2] = ["10.83.0.1", "10.83.0.2"];

    /// Two hosts, or none where that is not permitted, which is said loudly.
    pub(crate) fn new(test: &str) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}n{number}", std::process::id());
        let net = Self { hosts: ["a", "b"].map(|side| format!("dg{id}{side}")) };
        if let Err(why) = net.build(&id) {
            eprintln!(
                "SKIPPED SKIPPED SKIPPED: {test}: network namespaces with nftables cannot be had here: {why}"
            );
            return None;
        }
        Some(net)
    }

    fn build(&self, id: &str) -> Result<(), String> {
        let [a, b] = &self.hosts;
        let (cable_a, cable_b) = (format!("v{id}a"), format!("v{id}b"));
        command("ip", &["netns", "add", a])?;
        command("ip", &["netns", "add", b])?;
        command("ip", &["link", "add", &cable_a, "type", "veth", "peer", "name", &cable_b])?;
        for (host, cable, address) in [(a, &cable_a, Self::ADDRESSES[0]), (b, &cable_b, Self::ADDRESSES[1])] {
            command("ip", &["link", "set", cable, "netns", host])?;
            command("ip", &["-n", host, "addr", "add", &format!("{address}/24"), "dev", cable])?;
            command("ip", &["-n", host, "link", "set", cable, "up"])?;
            command("ip", &["-n", host, "link", "set", "lo", "up"])?;
        }
        self.rules("")
    }

    pub(crate) fn host(&self, number: usize) -> &str {
        &self.hosts[number]
    }

    /// Runs a program in a host and gives what it prints.
    pub(crate) fn run(&self, host: usize, program: &[&str]) -> String {
        let args = [&["netns", "exec", self.host(host)], program].concat();
        command("ip", &args).expect("it worked before")
    }

    /// What the first host's end of the cable does, in place of what it did: lines of chains `input` and `output`.
    pub(crate) fn rules(&self, lines: &str) -> Result<(), String> {
        let of = |chain: &str| -> String {
            let own = lines.lines().filter_map(|line| line.trim().strip_prefix(chain));
            own.map(|rule| format!("{rule}\n")).collect()
        };
        let table = format!(
            "flush ruleset\ntable inet test {{\n\
             counter tcp_in {{ }}\ncounter tcp_out {{ }}\n\
             chain input {{ type filter hook input priority 0;\n iifname != \"lo\" meta l4proto tcp counter name tcp_in\n{} }}\n\
             chain output {{ type filter hook output priority 0;\n oifname != \"lo\" meta l4proto tcp counter name tcp_out\n{} }}\n}}\n",
            of("input"),
            of("output")
        );
        let path = std::env::temp_dir().join(format!("{}.nft", self.hosts[0]));
        std::fs::write(&path, table).map_err(|e| e.to_string())?;
        let path_text = path.to_string_lossy().into_owned();
        let done = command("ip", &["netns", "exec", self.host(0), "nft", "-f", &path_text]);
        let _ = std::fs::remove_file(&path);
        done.map(drop)
    }

    /// Lets everything through.
    pub(crate) fn heal(&self) {
        self.rules("").expect("rules that worked before");
    }

    /// Bytes of TCP on the cable so far, with all headers above Ethernet, in both directions.
    pub(crate) fn tcp_bytes(&self) -> u64 {
        let text = self.run(0, &["nft", "list", "counters"]);
        let words: Vec<&str> = text.split_whitespace().collect();
        let bytes = words.windows(2).filter(|pair| pair[0] == "bytes");
        bytes.map(|pair| pair[1].parse::<u64>().expect("a number")).sum()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for host in &self.hosts {
            let _ = command("ip", &["netns", "del", host]);
        }
    }
}

fn command(program: &str, args: &[&str]) -> Result<String, String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}
