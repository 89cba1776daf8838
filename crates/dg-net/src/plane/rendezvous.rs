//! How the ranks of an epoch find each other: the lower rank of each pair listens, the higher one connects.

use super::address::{Address, Listener};
use super::error::{Refusal, Refused, SetUpError};
use super::hello::{Hello, Limits, Stranger};
use super::key::EpochKey;
use super::meeting::Meeting;
use super::sockets::{Identity, Sockets};
use super::stream::{Hurried, Stream};
use super::tls::{self, Tls};
use dg_comm::{IN_FLIGHT_MIN, RankName};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

/// Who belongs together, as whoever starts the ranks has decided.
#[derive(Clone, Debug)]
pub struct Rendezvous {
    /// Number of this mesh; a job that goes on with other ranks has a higher one.
    pub epoch: u64,
    /// The epoch's secret.
    pub key: EpochKey,
    /// All ranks; the i-th is rank i.
    pub members: Vec<Member>,
    /// This rank.
    pub me: usize,
}

/// Where a rank can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which host it is on; equal for ranks that can reach each other by unix sockets.
    pub host: String,
    /// Where it listens. From another host the first remote address is used, from its own the first of all. The last
    /// rank needs none.
    pub addresses: Vec<Address>,
}

impl Member {
    /// A rank with one address, on the same host as the other such ranks.
    pub fn at(address: Address) -> Self {
        Self { host: String::new(), addresses: vec![address] }
    }
}

/// How a rank is connected.
#[derive(Clone, Debug)]
pub struct Options {
    /// What each rank is called in errors; empty: `rank N` with its number among all.
    pub names: Vec<String>,
    /// Number of rank 0 among all ranks of the run, of which these may be a part.
    pub first: usize,
    /// Unread messages from one rank to this one before that rank waits; at least [`IN_FLIGHT_MIN`].
    pub in_flight_max: usize,
    /// Unread bytes from one rank to this one before that rank waits. One message may be larger.
    pub unread_bytes_max: u64,
    /// Longest message to this rank.
    pub message_bytes_max: u64,
    /// How long it may take until all ranks are connected.
    pub set_up_max: Duration,
    /// How long one hello may take.
    pub hello_max: Duration,
    /// How long [`finish`](dg_comm::Communicator::finish) waits until the others have everything.
    pub flush_max: Duration,
    /// For addresses with TLS.
    pub tls: Option<Tls>,
    /// Set to true by whoever wants the set-up to end; it does within some hundredths of a second.
    pub stop: Arc<AtomicBool>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            first: 0,
            in_flight_max: 256,
            unread_bytes_max: 1 << 30,
            message_bytes_max: 1 << 30,
            set_up_max: Duration::from_secs(30),
            hello_max: Duration::from_secs(2),
            flush_max: Duration::from_secs(5),
            tls: None,
            stop: Arc::default(),
        }
    }
}

/// Most ranks of a mesh: each has two threads for each of the others.
pub const RANKS_MAX: usize = 256;

impl Rendezvous {
    /// Connects this rank with all others. The listeners are those whose addresses the others were given; they are
    /// closed afterwards. Blocks until every rank is here.
    ///
    /// A connection with another epoch, key or version, of a rank that does not belong here or is here already, or
    /// without a word, is logged and dropped, and the rank that is meant is still waited for.
    ///
    /// # Errors
    /// [`SetUpError::Deadline`] names the ranks that are missing and the connections that were dropped;
    /// [`SetUpError::Refused`] and [`SetUpError::Untrusted`] if this rank and another do not agree;
    /// [`SetUpError::Invalid`]; [`SetUpError::Listen`] if a listener breaks.
    pub fn connect(&self, listeners: Vec<Listener>, options: Options) -> Result<Sockets, SetUpError> {
        let plan = Plan::new(self, options)?;
        let meeting = Meeting::new(self.members.len());
        let met = std::thread::scope(|scope| {
            let plan = &plan;
            let meeting = &meeting;
            if self.me + 1 < self.members.len() {
                for listener in &listeners {
                    scope.spawn(move || plan.listen(meeting, listener, scope));
                }
            }
            for to in 0..self.me {
                scope.spawn(move || plan.call(meeting, to));
            }
            meeting.wait(plan.me, (plan.begin, plan.end), &plan.options.stop, |rank| plan.name(rank))
        });
        drop(listeners);
        met?;
        let (connected, refused) = meeting.into_parts();
        let identity = Identity {
            me: plan.me,
            first: plan.options.first,
            names: plan.names.clone(),
            limits: plan.limits,
            flush_max: plan.options.flush_max,
        };
        let started = Sockets::start(identity, connected, refused);
        started.map_err(|error| SetUpError::Invalid(format!("cannot start the threads of a rank: {error}")))
    }
}

/// A rendezvous that can work.
struct Plan<'a> {
    rendezvous: &'a Rendezvous,
    options: Options,
    me: usize,
    names: Vec<String>,
    limits: Limits,
    /// Where each lower rank is.
    addresses: Vec<&'a Address>,
    begin: Instant,
    end: Instant,
}

impl<'a> Plan<'a> {
    fn new(rendezvous: &'a Rendezvous, options: Options) -> Result<Self, SetUpError> {
        let Rendezvous { members, me, .. } = rendezvous;
        let (me, size) = (*me, members.len());
        let invalid = |what| Err(SetUpError::Invalid(what));
        if me >= size || size > RANKS_MAX {
            return invalid(format!("rank {me} of {size}; at most {RANKS_MAX} ranks, the first is 0"));
        }
        let names = match options.names.len() {
            0 => (0..size).map(|rank| format!("rank {}", options.first + rank)).collect(),
            named if named == size => options.names.clone(),
            named => return invalid(format!("{named} names for {size} ranks")),
        };
        let mut addresses = Vec::new();
        for (rank, member) in members.iter().enumerate().take(me) {
            let near = member.host == members[me].host;
            let Some(address) = member.addresses.iter().find(|address| near || address.is_remote()) else {
                return invalid(format!("{} has no address that {} can reach", names[rank], names[me]));
            };
            address.checked()?;
            if address.is_remote() && options.tls.is_none() {
                return invalid(format!("{address} needs certificates, and there are none"));
            }
            addresses.push(address);
        }
        let in_flight_max = u32::try_from(options.in_flight_max.max(IN_FLIGHT_MIN)).unwrap_or(u32::MAX);
        let Options { unread_bytes_max, message_bytes_max, .. } = options;
        let limits = Limits { in_flight_max, unread_bytes_max, message_bytes_max };
        let begin = Instant::now();
        let end = begin + options.set_up_max.min(dg_comm::DEADLINE_MAX);
        Ok(Self { rendezvous, options, me, names, limits, addresses, begin, end })
    }

    fn name(&self, rank: usize) -> RankName {
        RankName { rank: self.options.first + rank, name: self.names[rank].clone() }
    }

    /// Accepts the ranks above this one.
    fn listen<'scope>(
        &'scope self,
        meeting: &'scope Meeting,
        listener: &'scope Listener,
        scope: &'scope Scope<'scope, '_>,
    ) {
        let mut pause = PAUSE_MIN;
        while !meeting.is_over() {
            match listener.accept() {
                Ok(Some((stream, from))) if meeting.hellos.load(Ordering::SeqCst) < HELLOS_MAX => {
                    meeting.hellos.fetch_add(1, Ordering::SeqCst);
                    scope.spawn(move || {
                        self.accept(meeting, listener, stream, from);
                        meeting.hellos.fetch_sub(1, Ordering::SeqCst);
                    });
                    pause = PAUSE_MIN;
                }
                // Too many at once: whoever is meant comes again.
                Ok(Some(_)) => {}
                Ok(None) => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(PAUSE_MAX);
                }
                Err(source) => {
                    let address = listener.address().to_string();
                    return meeting.fail(SetUpError::Listen { address, source });
                }
            }
        }
    }

    fn accept(&self, meeting: &Meeting, listener: &Listener, mut stream: Stream, from: String) {
        let end = self.end.min(Instant::now() + self.options.hello_max);
        let mut claimed = None;
        let accepted = self.shake(meeting, listener, &mut stream, end, &mut claimed);
        match accepted {
            Ok((rank, limits, tls)) => {
                meeting.arrive(usize::try_from(rank).unwrap_or(usize::MAX), stream, tls, limits);
            }
            Err(Stranger { rank, why, .. }) => {
                if let Some(claimed) = claimed {
                    meeting.unclaim(claimed);
                }
                if meeting.is_over() {
                    return;
                }
                let rendezvous = self.rendezvous;
                tracing::warn!(rank = self.options.first + self.me, epoch = rendezvous.epoch, %from, says = ?rank, %why, "a connection is refused");
                meeting.refuse(Refused { from, rank, why });
            }
        }
    }

    fn shake(
        &self,
        meeting: &Meeting,
        listener: &Listener,
        stream: &mut Stream,
        end: Instant,
        claimed: &mut Option<usize>,
    ) -> Result<(u32, Limits, Option<rustls::Connection>), Stranger> {
        let nobody = |why| Stranger { rank: None, why, told: false };
        let mut hurried = Hurried::new(stream, end, &meeting.over);
        let claim = |rank| {
            let rank = usize::try_from(rank).map_err(|_| Refusal::Rank)?;
            meeting.claim(rank)?;
            *claimed = Some(rank);
            Ok(())
        };
        let (rank, limits, tls) = if listener.has_tls() {
            let configs = self.options.tls.as_ref();
            let configs = configs.ok_or_else(|| nobody(Refusal::Certificate("none here".into())))?;
            let mut tls = tls::server(configs).map_err(nobody)?;
            let binding = tls::handshake(&mut tls, &mut hurried).map_err(nobody)?;
            let mut session = tls::Session { tls: &mut tls, stream: hurried };
            let (rank, limits) = self.hello(binding).accept(&mut session, claim)?;
            (rank, limits, Some(tls))
        } else {
            let (rank, limits) = self.hello([0; 32]).accept(&mut hurried, claim)?;
            (rank, limits, None)
        };
        stream.set_patience(None).map_err(|error| nobody(Refusal::Closed(error.to_string())))?;
        Ok((rank, limits, tls))
    }

    /// Connects to rank `to`, again and again until it is there.
    fn call(&self, meeting: &Meeting, to: usize) {
        let mut pause = PAUSE_MIN;
        while !meeting.is_over() {
            match self.try_call(meeting, to) {
                Ok((stream, tls, limits)) => return meeting.arrive(to, stream, tls, limits),
                Err(Stranger { why, told, .. }) => {
                    let peer = self.name(to);
                    match why {
                        // It may not listen yet, or be busy with others.
                        Refusal::Closed(_) | Refusal::Silent => meeting.tried(to, why.to_string()),
                        _ if told => return meeting.fail(SetUpError::Refused { peer, why }),
                        _ => return meeting.fail(SetUpError::Untrusted { peer, why }),
                    }
                }
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(AGAIN_MAX);
        }
    }

    fn try_call(
        &self,
        meeting: &Meeting,
        to: usize,
    ) -> Result<(Stream, Option<rustls::Connection>, Limits), Stranger> {
        let rank = u32::try_from(to).unwrap_or(u32::MAX);
        let failed = |why| Stranger { rank: Some(rank), why, told: false };
        let closed = |error: std::io::Error| failed(Refusal::Closed(error.to_string()));
        let address = self.addresses[to];
        let left = self.end.saturating_duration_since(Instant::now()).max(PAUSE_MIN);
        let mut stream = address.connect(left.min(self.options.hello_max)).map_err(closed)?;
        let end = self.end.min(Instant::now() + self.options.hello_max);
        let mut hurried = Hurried::new(&mut stream, end, &meeting.over);
        let (limits, tls) = match (address, &self.options.tls) {
            (Address::Tls { name, .. }, Some(configs)) => {
                let mut tls = tls::client(configs, name).map_err(failed)?;
                let binding = tls::handshake(&mut tls, &mut hurried).map_err(failed)?;
                let mut session = tls::Session { tls: &mut tls, stream: hurried };
                (self.hello(binding).connect(&mut session, rank)?, Some(tls))
            }
            _ => (self.hello([0; 32]).connect(&mut hurried, rank)?, None),
        };
        stream.set_patience(None).map_err(closed)?;
        Ok((stream, tls, limits))
    }

    fn hello(&self, binding: [u8; 32]) -> Hello<'_> {
        let Rendezvous { epoch, key, members, .. } = self.rendezvous;
        // Checked to be few.
        let [ranks, me] = [members.len(), self.me].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        Hello { key, epoch: *epoch, ranks, me, limits: self.limits, binding }
    }
}

/// How often a listener is looked at.
const PAUSE_MIN: Duration = Duration::from_micros(200);
const PAUSE_MAX: Duration = Duration::from_millis(5);

/// Longest time between two attempts to reach a rank.
const AGAIN_MAX: Duration = Duration::from_millis(50);

/// Connections that may say hello at once.
const HELLOS_MAX: usize = 2 * RANKS_MAX;
