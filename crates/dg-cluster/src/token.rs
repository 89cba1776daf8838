//! `dg-cluster token`: by what nodes of other hosts get their certificates.

use crate::args::Form;
use crate::date::{minute, utc};
use crate::failure::{Failure, print, warn};
use crate::place::{Found, Place, name};
use crate::table::columns;
use clap::Subcommand;
use dg_config::{Address, units};
use dg_core::ExitCode;
use dg_net::identity::{Name, State};
use dg_net::join::{TOKEN_LIFE, Token, TokenBook};
use serde_json::json;
use std::time::{Duration, SystemTime};

/// What to do with join tokens.
#[derive(Debug, Subcommand)]
pub(crate) enum Action {
    /// Print a new token, by which one node can join once. A head that runs knows it at once.
    Create {
        /// Which cluster.
        #[command(flatten)]
        place: Place,
        /// The only node that it is for. Default: any whose name is free.
        #[arg(long, value_name = "NAME", value_parser = name)]
        node: Option<Name>,
        /// How long it works, such as 30min, 24h or 7d. Default: `token_lifetime` of the file, else 24h.
        #[arg(long, value_name = "TIME", value_parser = life)]
        ttl: Option<Duration>,
        /// Where nodes reach the head. Default: `listen` of the file, else where it listens now.
        #[arg(long, value_name = "HOST:PORT", value_parser = address)]
        address: Option<Address>,
    },
    /// List the tokens, without their secrets. Used and old ones stay for a day.
    List {
        /// Which cluster.
        #[command(flatten)]
        place: Place,
        /// Form of the list.
        #[arg(short = 'o', long, value_name = "FORM", value_enum, default_value_t = Form::Text)]
        output: Form,
    },
    /// Take a token back.
    Revoke {
        /// Which cluster.
        #[command(flatten)]
        place: Place,
        /// Its id, as `token list` shows it.
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// Does it.
pub(crate) fn run(action: &Action) -> Result<(), Failure> {
    let now = SystemTime::now();
    match action {
        Action::Create { place, node, ttl, address } => {
            let found = place.find()?;
            let at = reached_at(&found, address.as_ref())?;
            let named = found.file.as_ref().map(|file| file.security.token_lifetime);
            create(&found, at, node.as_ref(), ttl.or(named).unwrap_or(TOKEN_LIFE), now)
        }
        Action::List { place, output } => list(&place.state()?, *output, now),
        Action::Revoke { place, id } => {
            if TokenBook::open(&place.state()?)?.revoke(id)? {
                return print(&format!("revoked token {id}"));
            }
            let hint = "`dg-cluster token list` shows them";
            Err(Failure::new(ExitCode::Config, format!("there is no token `{id}`"), hint))
        }
    }
}

fn create(
    found: &Found,
    (host, port): (String, u16),
    node: Option<&Name>,
    life: Duration,
    now: SystemTime,
) -> Result<(), Failure> {
    if let (Some(node), Some(file)) = (node, &found.file)
        && !file.nodes.iter().any(|known| known.name == node.as_str())
    {
        warn(&format!("{} has no node `{node}`", file.path.display()));
    }
    let state = State::open(&found.folder)?;
    let ca = state.ca()?.fingerprint();
    let token = TokenBook::open(&state)?.create(ca, (&host, port), node.cloned(), life, now)?;
    print(&token.to_string())
}

/// Host and port for a token, of which other hosts must be able to make something.
fn reached_at(found: &Found, given: Option<&Address>) -> Result<(String, u16), Failure> {
    let listen = found.file.as_ref().map(|file| &file.cluster.listen);
    // Without the file, what a head that runs has written down.
    let noted = std::fs::read_to_string(found.folder.join("head.addr")).ok();
    let noted = noted.and_then(|text| Address::parse(text.trim())).filter(|address| !address.is_loopback());
    let Some(address) = given.or(listen).or(noted.as_ref()) else {
        let hint = "add `--address HOST:PORT`, where nodes reach the head, or name its file by --cluster";
        return Err(Failure::new(ExitCode::Usage, "a token needs the address of the head", hint));
    };
    let exit = if given.is_some() { ExitCode::Usage } else { ExitCode::Config };
    let Some(port) = address.port else {
        let message = format!("the address `{address}` has no port");
        return Err(Failure::new(
            exit,
            message,
            format!("write `{address}:7443`, or what the head listens on"),
        ));
    };
    if address.is_unspecified() {
        let message = format!("nobody can be sent to `{address}`: it stands for all addresses of a host");
        let hint = "name one that nodes reach, such as `--address 10.0.0.1:7443`";
        return Err(Failure::new(exit, message, hint));
    }
    if address.is_loopback() {
        warn(&format!("only processes of this host reach a head at {address}"));
    }
    let host = if address.host.contains(':') { format!("[{}]", address.host) } else { address.host.clone() };
    Ok((host, port))
}

fn list(state: &State, form: Form, now: SystemTime) -> Result<(), Failure> {
    let mut tokens = TokenBook::open(state)?.list()?;
    tokens.sort_by_key(Token::expires);
    if form == Form::Json {
        let of = |token: &Token| {
            json!({
                "id": token.id(), "node": token.name().map(ToString::to_string),
                "expires": utc(token.expires()), "state": condition(token, now),
            })
        };
        let tokens: Vec<_> = tokens.iter().map(of).collect();
        return print(&json!({"schema": SCHEMA, "tokens": tokens}).to_string());
    }
    let mut rows = vec![["id", "node", "expires (UTC)", "state"].map(String::from).to_vec()];
    rows.extend(tokens.iter().map(|token| {
        let node = token.name().map_or_else(|| "any".to_string(), ToString::to_string);
        vec![token.id(), node, minute(token.expires()), condition(token, now).to_string()]
    }));
    print(columns(&rows, &[]).trim_end())
}

fn condition(token: &Token, now: SystemTime) -> &'static str {
    match (token.is_used(), token.is_open(now)) {
        (true, _) => "used",
        (_, true) => "open",
        _ => "expired",
    }
}

fn life(text: &str) -> Result<Duration, String> {
    let life = units::duration(text).filter(|life| (LIFE_MIN..=LIFE_MAX).contains(life));
    life.ok_or_else(|| "expected a time from 1min to 30d, such as 24h".to_string())
}

fn address(text: &str) -> Result<Address, String> {
    Address::parse(text).ok_or_else(|| "expected a host and a port, such as 10.0.0.1:7443".to_string())
}

/// As for `token_lifetime`.
const LIFE_MIN: Duration = Duration::from_secs(60);
const LIFE_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Version of the JSON that docs/cluster.md describes.
const SCHEMA: u32 = 1;
