//! The thread that makes all calls to NCCL.

use crate::driver::Context;
use crate::edge::{Edge, End, Transfer};
use crate::error::{GpuError, Result};
use crate::library::{Library, Raw, RawId};
use crate::memory::{Arena, Memory};
use crate::ticket::{RECORD, Record};
use dg_comm::{Block, BlockShape, CommError, Communicator, Deadline, Gone, Pending};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What the thread and those who call have in common.
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// This rank has finished: nothing more may be said. Held while something is said.
    silent: Mutex<bool>,
}

/// What is known of each peer, by its rank, and what belongs to nobody yet.
pub(crate) struct State {
    pub(crate) peers: Vec<Peer>,
    /// Handed over, for the thread: receiver and message.
    outgoing: VecDeque<(usize, Transfer)>,
    /// Messages that have arrived, by sender and number.
    arrivals: HashMap<(usize, u64), Arc<Memory>>,
    /// Messages that nobody will ask for.
    unwanted: BTreeSet<(usize, u64)>,
    /// Messages of this rank to itself.
    pub(crate) own: HashMap<u64, Block>,
    /// How often the thread has read all that the others have said.
    pub(crate) heard: u64,
    /// The thread is to end.
    leaves: bool,
    /// It has ended, or there is none.
    pub(crate) is_over: bool,
}

#[derive(Default)]
pub(crate) struct Peer {
    /// Number of the next message to it.
    next: u64,
    /// Messages to it that it does not have yet.
    pub(crate) unarrived: u64,
    /// It will neither send nor receive.
    pub(crate) closed: Option<CommError>,
    /// Bytes from it that were made room for and that nobody has taken.
    untaken: u64,
    /// Somebody waits for messages up to this.
    wanted: Option<u64>,
    /// Where it is waited for with messages to it, which it has not been told.
    open: Option<RawId>,
    /// Messages from it that it has not been told have arrived.
    unsaid: u64,
    /// Messages to it whose tickets found no room, so that nobody will ask for them, which it has not been told.
    pub(crate) void: VecDeque<u64>,
}

impl Peer {
    fn to_say(&self) -> Option<Record> {
        if let Some(id) = self.open {
            return Some(Record::Open(id));
        }
        if self.unsaid > 0 {
            return Some(Record::Arrived { count: self.unsaid });
        }
        self.void.front().map(|serial| Record::Void { serial: *serial })
    }

    fn has_said(&mut self, record: Record) {
        match record {
            Record::Arrived { count } => self.unsaid = self.unsaid.saturating_sub(count),
            Record::Void { .. } => drop(self.void.pop_front()),
            Record::Open(_) => self.open = None,
            Record::Data { .. } => {}
        }
    }
}

impl Shared {
    pub(crate) fn new(size: usize) -> Self {
        let state = State {
            peers: (0..size).map(|_| Peer::default()).collect(),
            outgoing: VecDeque::new(),
            arrivals: HashMap::new(),
            unwanted: BTreeSet::new(),
            own: HashMap::new(),
            heard: 0,
            leaves: false,
            is_over: size < 2,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), silent: Mutex::new(false) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for something to change, at most so long.
    pub(crate) fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn changed(&self) {
        self.changed.notify_all();
    }

    /// From now on the thread says nothing more.
    pub(crate) fn be_silent(&self) {
        *self.silent.lock().unwrap_or_else(PoisonError::into_inner) = true;
    }

    /// Tells the thread to end.
    pub(crate) fn leave(&self) {
        self.lock().leaves = true;
        self.changed();
    }
}

impl State {
    /// A number for a message to `to`.
    pub(crate) fn number(&mut self, to: usize) -> u64 {
        let next = &mut self.peers[to].next;
        *next += 1;
        *next
    }

    pub(crate) fn hand_over(&mut self, to: usize, serial: u64, memory: Arc<Memory>) {
        self.outgoing.push_back((to, Transfer { serial, memory }));
    }

    /// The message, if it has arrived; otherwise it is wanted.
    pub(crate) fn take(&mut self, from: usize, serial: u64) -> Option<Arc<Memory>> {
        let memory = self.arrivals.remove(&(from, serial));
        let peer = &mut self.peers[from];
        match &memory {
            Some(memory) => peer.untaken = peer.untaken.saturating_sub(memory.bytes() as u64),
            None => peer.wanted = peer.wanted.max(Some(serial)),
        }
        memory
    }

    /// Nobody will take it.
    pub(crate) fn discard(&mut self, from: usize, serial: u64) {
        if self.take(from, serial).is_none() {
            self.unwanted.insert((from, serial));
        }
    }

    pub(crate) fn is_here(&self, from: usize, serial: u64) -> bool {
        self.arrivals.contains_key(&(from, serial))
    }

    /// Everything has arrived that was sent to those who still listen, and they know what has arrived here, also of what
    /// nobody wants.
    pub(crate) fn is_still(&self) -> bool {
        let is_awaited = |from: usize| self.unwanted.range((from, 0)..=(from, u64::MAX)).next().is_some();
        let mut peers = self.peers.iter().enumerate();
        self.is_over
            || peers.all(|(rank, peer)| {
                peer.closed.is_some() || (peer.unarrived == 0 && peer.unsaid == 0 && !is_awaited(rank))
            })
    }
}

/// What the thread needs.
pub(crate) struct Engine {
    inner: Arc<dyn Communicator>,
    shared: Arc<Shared>,
    library: Library,
    context: Context,
    arena: Arc<dyn Arena>,
    untaken_max: u64,
    /// The next record of each peer.
    records: Vec<Option<Pending>>,
    /// Messages that were announced and have no room yet.
    announced: Vec<VecDeque<(u64, BlockShape)>>,
    edges: BTreeMap<(usize, End), Edge>,
}

impl Engine {
    pub(crate) fn new(
        inner: Arc<dyn Communicator>,
        shared: Arc<Shared>,
        (library, context): (Library, Context),
        arena: Arc<dyn Arena>,
        untaken_max: u64,
    ) -> dg_comm::Result<Self> {
        let (me, size) = (inner.rank(), inner.size());
        let record = |from| inner.post_recv(from, &Record::call(Deadline::after(Duration::ZERO)), RECORD);
        let records = (0..size).map(|from| (from != me).then(|| record(from)).transpose());
        let records = records.collect::<dg_comm::Result<_>>()?;
        let announced = vec![VecDeque::new(); size];
        Ok(Self {
            inner,
            shared,
            library,
            context,
            arena,
            untaken_max,
            records,
            announced,
            edges: BTreeMap::new(),
        })
    }

    /// Works until it is told to leave or the job ends.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.context.bind() {
            self.inner.abort(&error.to_string());
        }
        let mut quiet = 0;
        loop {
            // Making room is others' code: whoever waits for this thread has to hear of its end in any case.
            let round = catch_unwind(AssertUnwindSafe(|| self.round()));
            let round = round.unwrap_or_else(|panic| Err(GpuError::Panicked(words_of(&*panic))));
            match round {
                Ok(true) => quiet = 0,
                Ok(false) => quiet += 1,
                Err(error) => {
                    self.inner.abort(&error.to_string());
                    break;
                }
            }
            let mut state = self.shared.lock();
            if state.leaves {
                break;
            }
            if self.inner.check().is_err() {
                break;
            }
            // While something goes on, it is looked at often.
            let pause = if quiet < SOON { Duration::from_micros(20) } else { Duration::from_micros(200) };
            if state.outgoing.is_empty() {
                state = self.shared.wait(state, pause);
            }
            drop(state);
        }
        let is_clean = self.inner.check().is_ok() && self.edges.values().all(Edge::is_still);
        if is_clean {
            close(self.edges.into_values().filter_map(Edge::into_raw).collect());
        } else {
            // Each is given up before the memory that it may use is. NCCL may hang in that: so it is not over before.
            drop(self.edges);
        }
        self.shared.lock().is_over = true;
        self.shared.changed();
    }

    /// Does what can be done now; says whether that was something.
    fn round(&mut self) -> Result<bool> {
        let heard = self.hear()?;
        let taken = self.take_over()?;
        self.make_room()?;
        let mut ready = Vec::new();
        let mut arrived = false;
        for (key, edge) in &mut self.edges {
            let (done, has_more) = edge.poll()?;
            if has_more {
                ready.push(*key);
            }
            if key.1 == End::Receiver && !done.is_empty() {
                arrived = true;
                deliver(&mut self.shared.lock(), key.0, done);
            }
        }
        if !ready.is_empty() {
            let edges = &mut self.edges;
            let mut of_key = |key| edges.get_mut(key).map_or(Ok(()), Edge::launch);
            self.library.group(|| ready.iter().try_for_each(&mut of_key))?;
        }
        if arrived {
            self.shared.changed();
        }
        self.say();
        Ok(heard || taken || arrived || !ready.is_empty())
    }

    /// Reads what the others say.
    fn hear(&mut self) -> Result<bool> {
        let mut heard = false;
        for from in 0..self.records.len() {
            while self.records[from].as_ref().is_some_and(Pending::is_ready) {
                heard = true;
                let Some(mut record) = self.records[from].take() else { break };
                match record.wait(Deadline::after(Duration::ZERO)) {
                    Ok(block) => {
                        let next = self.inner.post_recv(
                            from,
                            &Record::call(Deadline::after(Duration::ZERO)),
                            RECORD,
                        );
                        self.records[from] = next.ok();
                        match Record::unpack(&block) {
                            Some(record) => self.obey(from, record)?,
                            None => self.inner.abort(&format!("rank {from} sent no record of this protocol")),
                        }
                    }
                    Err(CommError::Deadline { .. }) => self.records[from] = Some(record),
                    Err(error) => {
                        self.shared.lock().peers[from].closed = Some(error);
                        self.shared.changed();
                    }
                }
            }
        }
        self.shared.lock().heard += 1;
        Ok(heard)
    }

    fn obey(&mut self, from: usize, record: Record) -> Result<()> {
        match record {
            Record::Data { serial, shape } => self.announced[from].push_back((serial, shape)),
            Record::Void { serial } => self.shared.lock().discard(from, serial),
            Record::Arrived { count } => {
                let mut state = self.shared.lock();
                let peer = &mut state.peers[from];
                peer.unarrived = peer.unarrived.saturating_sub(count);
                drop(state);
                self.shared.changed();
            }
            Record::Open(id) => {
                let raw = self.library.begin(id, End::Receiver.rank())?;
                self.edge(from, End::Receiver)?.open(raw);
            }
        }
        Ok(())
    }

    /// Takes what was handed over.
    fn take_over(&mut self) -> Result<bool> {
        let outgoing = std::mem::take(&mut self.shared.lock().outgoing);
        let is_something = !outgoing.is_empty();
        for (to, transfer) in outgoing {
            self.edge(to, End::Sender)?.push(transfer);
            if !self.edge(to, End::Sender)?.is_open() {
                let id = self.library.unique_id()?;
                self.shared.lock().peers[to].open = Some(id);
                let raw = self.library.begin(id, End::Sender.rank())?;
                self.edge(to, End::Sender)?.open(raw);
            }
        }
        Ok(is_something)
    }

    fn edge(&mut self, peer: usize, end: End) -> Result<&mut Edge> {
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.edges.entry((peer, end)) {
            vacant.insert(Edge::new(end, self.context.stream()?));
        }
        Ok(self.edges.get_mut(&(peer, end)).expect("made just now"))
    }

    /// Makes room for messages in the order in which they were announced, as far as the limit lets it.
    fn make_room(&mut self) -> Result<()> {
        for from in 0..self.announced.len() {
            while let Some((serial, shape)) = self.announced[from].front().copied() {
                let bytes = shape.bytes();
                {
                    let mut state = self.shared.lock();
                    let peer = &mut state.peers[from];
                    let has_room =
                        peer.untaken == 0 || peer.untaken.saturating_add(bytes) <= self.untaken_max;
                    if !has_room && peer.wanted < Some(serial) {
                        break;
                    }
                    peer.untaken += bytes;
                }
                self.announced[from].pop_front();
                let owner = self.arena.room(shape)?;
                let short = GpuError::OutOfMemory { need: bytes, free: owner.bytes() as u64, total: 0 };
                let memory = Arc::new(Memory::new(owner, shape).ok_or(short)?);
                self.edge(from, End::Receiver)?.push(Transfer { serial, memory });
            }
        }
        Ok(())
    }

    /// Tells the others what they may forget, as far as there is room to say it. What is left is said later: unread
    /// tickets may fill the plane, and this thread must not wait for whoever reads them.
    fn say(&self) {
        for peer in 0..self.records.len() {
            loop {
                let Some(record) = self.shared.lock().peers[peer].to_say() else { break };
                let silent = self.shared.silent.lock().unwrap_or_else(PoisonError::into_inner);
                if *silent {
                    return;
                }
                let now = Deadline::after(Duration::ZERO);
                let said = self.inner.send(peer, &Record::call(now), record.pack());
                drop(silent);
                if matches!(said, Err(CommError::Deadline { .. })) {
                    break;
                }
                // Another error is the end of the peer, which is heard of.
                self.shared.lock().peers[peer].has_said(record);
                self.shared.changed();
            }
        }
    }
}

fn deliver(state: &mut State, from: usize, done: Vec<Transfer>) {
    for Transfer { serial, memory } in done {
        state.peers[from].unsaid += 1;
        if state.unwanted.remove(&(from, serial)) {
            let peer = &mut state.peers[from];
            peer.untaken = peer.untaken.saturating_sub(memory.bytes() as u64);
        } else {
            state.arrivals.insert((from, serial), memory);
        }
    }
}

/// Ends communicators in order, if their other ends do so too within a moment; otherwise they are given up. All are told
/// before one is waited for: two ranks that each waited for another one first would wait for each other.
fn close(mut raws: Vec<Raw>) {
    let end = Instant::now() + CLOSE_MAX;
    raws.retain(|raw| raw.finalize().is_ok());
    while !raws.is_empty() && Instant::now() < end {
        for i in (0..raws.len()).rev() {
            match raws[i].is_idle() {
                Ok(true) => raws.swap_remove(i).destroy(),
                Ok(false) => (),
                Err(_) => drop(raws.swap_remove(i)),
            }
        }
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// What a panic says.
fn words_of(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

/// A dead rank that finished is dead all the same; one that finished properly only has nothing more to say.
pub(crate) fn is_finished(error: &CommError) -> bool {
    matches!(error, CommError::PeerGone { how: Gone::Finished, .. })
}

/// Rounds without anything after which it is looked less often.
const SOON: u32 = 500;
const CLOSE_MAX: Duration = Duration::from_secs(2);
