//! Every command line of the two programs in `cluster/` is one that they take.

use super::{files, read};
use crate::place::Place;
use std::collections::{BTreeMap, BTreeSet};

/// A command of one of the programs as it stands in a file.
#[derive(Debug)]
struct Found {
    place: String,
    program: &'static str,
    words: Vec<String>,
}

/// What `--help` says, by command, read once each.
struct Helps {
    place: Place,
    pages: BTreeMap<Vec<String>, String>,
}

impl Helps {
    fn page(&mut self, path: &[&str]) -> &str {
        let key: Vec<String> = path.iter().map(|word| (*word).to_owned()).collect();
        let place = &self.place;
        self.pages.entry(key).or_insert_with(|| {
            let (program, rest) = path.split_first().expect("a program");
            let args = [rest, &["--help"]].concat();
            let output = if *program == "diffgentor" { place.run(&args) } else { place.cluster(&args, &[]) };
            output.expect_success().stdout
        })
    }

    /// The commands below a command.
    fn commands(&mut self, path: &[&str]) -> BTreeSet<String> {
        let page = self.page(path);
        let below = page.split_once("Commands:\n").map_or("", |(_, rest)| rest);
        let lines = below.lines().take_while(|line| line.starts_with("  "));
        lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }
}

#[test]
fn commands_in_deployments_are_commands_of_the_programs() {
    let found: Vec<Found> = files().iter().flat_map(|path| commands_in(path, &read(path))).collect();
    let programs = ["dg-cluster", "diffgentor"];
    for program in programs {
        assert!(found.iter().filter(|found| found.program == program).count() >= 3, "{found:#?}");
    }
    let mut helps = Helps { place: Place::new(), pages: BTreeMap::new() };
    let wrong = found.iter().filter_map(|found| {
        let what = check(found, &mut helps).err()?;
        Some(format!("{}: {} {}: {what}", found.place, found.program, found.words.join(" ")))
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn check(found: &Found, helps: &mut Helps) -> Result<(), String> {
    let mut path = vec![found.program];
    for word in &found.words {
        let below = helps.commands(&path);
        if below.is_empty() || word.starts_with('-') {
            break;
        }
        if !below.contains(word) {
            return Err(format!("`{}` has no command `{word}`", path.join(" ")));
        }
        path.push(word);
    }
    let page = helps.page(&path);
    for flag in found.words.iter().filter(|word| word.starts_with('-') && *word != "-") {
        let flag = flag.split('=').next().unwrap_or(flag);
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        let known = page.match_indices(flag).any(|(at, _)| {
            let before = page[..at].chars().next_back();
            !before.is_some_and(is_word) && !page[at + flag.len()..].starts_with(is_word)
        });
        if !known {
            return Err(format!("`{}` has no flag `{flag}`", path.join(" ")));
        }
    }
    one_of_each(page, &found.words)
}

/// Of flags that exclude each other and one of which has to be given, one is.
fn one_of_each(page: &str, words: &[String]) -> Result<(), String> {
    let usage = page.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap_or_default();
    for group in usage.split(" <--").skip(1) {
        let flags = group.split('|').map(|flag| {
            let name = flag.split([' ', '>']).next().unwrap_or(flag);
            format!("--{}", name.trim_start_matches("--"))
        });
        let flags: Vec<String> = flags.take_while(|flag| flag.len() > 2).collect();
        if !words.iter().any(|word| flags.iter().any(|flag| word.split('=').next() == Some(flag))) {
            return Err(format!("it needs one of {}", flags.join(", ")));
        }
    }
    Ok(())
}

/// The commands in a file. Of a manual only code counts; in a comment, what begins with a command's name.
fn commands_in(path: &str, content: &str) -> Vec<Found> {
    let is_manual = path.ends_with(".md");
    let mut found = Vec::new();
    let mut in_code = false;
    for (number, line) in content.replace("\\\n", " ").lines().enumerate() {
        if is_manual && line.trim_start().starts_with("```") {
            in_code = !in_code;
            continue;
        }
        let place = format!("{path}:{}", number + 1);
        let (line, is_comment) = match line.trim_start().strip_prefix('#') {
            Some(rest) => (rest, true),
            None => (line, false),
        };
        if is_manual && !in_code {
            let spans = line.split('`').skip(1).step_by(2);
            found.extend(spans.flat_map(|span| commands_in_line(&place, span, true)));
        } else {
            found.extend(commands_in_line(&place, line, is_comment));
        }
    }
    found
}

/// In a strict line whatever follows a program has to be a command of it.
fn commands_in_line(place: &str, line: &str, is_prose: bool) -> Vec<Found> {
    // What a command's output is put into counts as a word there, and is looked at by itself.
    if let Some((before, rest)) = line.split_once("$(")
        && let Some((inner, after)) = rest.split_once(')')
    {
        let mut found = commands_in_line(place, inner, is_prose);
        found.extend(commands_in_line(place, &format!("{before}VALUE{after}"), is_prose));
        return found;
    }
    let mut spaced = String::new();
    for c in line.chars() {
        match c {
            '"' | '\'' | '[' | ']' | ',' | '(' => spaced.push(' '),
            '|' | '&' | ';' | '`' | '>' | '<' | ')' | '#' => spaced.push_str(" \0 "),
            c => spaced.push(c),
        }
    }
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut found = Vec::new();
    for (i, word) in words.iter().enumerate() {
        let name = word.rsplit(['/', '=']).next().unwrap_or(word);
        let Some(program) = ["dg-cluster", "diffgentor"].into_iter().find(|program| *program == name) else {
            continue;
        };
        let rest: Vec<String> =
            words[i + 1..].iter().take_while(|word| **word != "\0").map(|word| (*word).to_owned()).collect();
        let Some(first) = rest.first() else { continue };
        // `kubectl -n diffgentor`, `-o dg-cluster`: a name, not the program
        let is_value = i > 0 && words[i - 1].starts_with('-') && words[i - 1] != "--";
        if is_value {
            continue;
        }
        let is_command = first.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        let is_flag = first.len() > 2 && first.starts_with("--");
        let is_known = KNOWN.contains(&first.as_str());
        if is_known || (!is_prose && (is_command || is_flag)) {
            found.push(Found { place: place.to_owned(), program, words: rest });
        }
    }
    found
}

#[test]
fn commands_are_found_where_they_stand() {
    let found = |line: &str, is_prose| -> Vec<String> {
        let found = commands_in_line("", line, is_prose);
        found.iter().map(|found| format!("{} {}", found.program, found.words.join(" "))).collect()
    };
    for (line, expected) in [
        ("ExecStart=/usr/local/bin/dg-cluster up a.toml", &["dg-cluster up a.toml"][..]),
        ("[\"dg-cluster\", \"agent\", \"--name\", \"$(NODE)\"]", &["dg-cluster agent --name VALUE"]),
        ("[ -e x ] || dg-cluster certs init && dg-cluster upp", &["dg-cluster certs init", "dg-cluster upp"]),
        ("runuser -u dg-cluster -- dg-cluster token create > x", &["dg-cluster token create"]),
        ("dg-cluster join \"$(cat t)\" --name a", &["dg-cluster join VALUE --name a"]),
        ("kubectl -n diffgentor exec head-0 -- diffgentor t2i", &["diffgentor t2i"]),
        ("useradd --home-dir /var/lib/dg-cluster --shell /bin/sh dg-cluster", &[]),
        ("entrypoint: [diffgentor, t2i, --cluster, f]", &["diffgentor t2i --cluster f"]),
        ("COPY /programs/dg-cluster /programs/diffgentor /usr/local/bin/", &[]),
        ("install -d -o dg-cluster -g dg-cluster -m 700 x", &[]),
    ] {
        assert_eq!(found(line, false), expected, "{line}");
    }
    assert_eq!(found("dg-cluster and diffgentor in one image", true), [] as [&str; 0]);
}

/// What is a command of the programs where prose names them.
const KNOWN: [&str; 16] = [
    "agent", "cancel", "certs", "doctor", "down", "drain", "jobs", "join", "logs", "plan", "status", "t2i",
    "token", "up", "validate", "--help",
];
