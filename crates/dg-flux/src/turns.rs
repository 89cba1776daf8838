//! Layers whose weights lie in mapped files and take turns: while one computes, a thread reads those of the next, and
//! weights that memory has no room for leave once they are used.
//!
//! A loop over more weights than fit is the worst case of a cache that forgets what was used least recently: nothing
//! that it keeps is there when it is wanted. So the first layers stay, as many as fit, and only the others are read again
//! in each round.

use crate::watch::{Cancelled, Watch};
use crate::weights::Pages;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of mapped weights from which on layers take turns even if all of them fit. Less than that is read before a
/// thread is worth it.
const BYTES_MIN: u64 = 1 << 30;
/// How often somebody who waits for weights looks whether the run is to stop.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes between two tensors that are read with them: biases lie there.
const GAP_MAX: usize = 64 << 10;

/// The weights of layers that are used one after the other.
pub(crate) struct Turns {
    shared: Arc<Shared>,
    /// Whether the first layer follows the last.
    is_round: bool,
    bytes_min: u64,
    reader: OnceLock<Option<Reader>>,
}

struct Reader {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
}

struct Shared {
    layers: Vec<Layer>,
    state: Mutex<State>,
    changed: Condvar,
}

struct Layer {
    pages: Vec<Pages>,
    bytes: u64,
}

struct State {
    standing: Vec<Standing>,
    /// Layers from the first on that stay; absent, layers do not take turns.
    kept: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Away,
    Asked,
    Here,
}

enum Order {
    Read(usize),
    Drop(usize),
}

impl Turns {
    /// For the pages of each layer, in the order of their use. In a round the first layer follows the last.
    pub(crate) fn new(layers: Vec<Vec<Pages>>, is_round: bool) -> Self {
        let layers: Vec<Layer> = layers.into_iter().map(Layer::new).collect();
        let state = State { standing: vec![Standing::Away; layers.len()], kept: None };
        let shared = Arc::new(Shared { layers, state: Mutex::new(state), changed: Condvar::new() });
        Self { shared, is_round, bytes_min: BYTES_MIN, reader: OnceLock::new() }
    }

    /// Bytes of all layers.
    pub(crate) fn bytes(&self) -> u64 {
        self.shared.layers.iter().map(|layer| layer.bytes).sum()
    }

    /// From now on layers take turns, and the first of them stay, as many as `bytes` has room for beside the two that
    /// are used and read. Nothing happens for few weights that fit, or without `bytes`: then the system decides.
    pub(crate) fn keep(&self, bytes: Option<u64>) {
        let all = self.bytes();
        let bytes = bytes.filter(|bytes| all >= self.bytes_min || all > *bytes);
        let kept = bytes.map(|bytes| kept(&self.shared.layers, bytes));
        let mut state = self.shared.lock();
        let old = std::mem::replace(&mut state.kept, kept);
        let leave = match (old, kept) {
            (Some(_), Some(kept)) => kept,
            _ => self.shared.layers.len(),
        };
        let here: Vec<usize> =
            (leave..state.standing.len()).filter(|i| state.standing[*i] == Standing::Here).collect();
        here.into_iter().for_each(|i| self.drop_behind(&mut state, i));
        // The system may have taken them meanwhile; looking again costs little.
        let stay = state.standing.iter_mut().filter(|standing| **standing == Standing::Here);
        stay.for_each(|standing| *standing = Standing::Away);
    }

    /// Layer `i` is about to be used: has the next one read, and waits for its own.
    pub(crate) fn begin(&self, i: usize, watch: &dyn Watch) -> Result<(), Cancelled> {
        let mut state = self.shared.lock();
        if state.kept.is_none() || !self.ask(&mut state, i) {
            return Ok(());
        }
        if let Some(next) = self.after(i) {
            self.ask(&mut state, next);
        }
        while state.standing[i] != Standing::Here && self.is_reading() {
            let waited = self.shared.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            watch.check()?;
        }
        Ok(())
    }

    /// Layer `i` was used.
    pub(crate) fn end(&self, i: usize) {
        let mut state = self.shared.lock();
        if state.kept.is_some_and(|kept| i >= kept) {
            self.drop_behind(&mut state, i);
        }
    }

    /// Has layer `i` read, unless it is here; false if nobody can.
    fn ask(&self, state: &mut State, i: usize) -> bool {
        let Some(reader) = self.reader() else { return false };
        if state.standing[i] == Standing::Away {
            state.standing[i] = Standing::Asked;
            return reader.orders.send(Order::Read(i)).is_ok();
        }
        true
    }

    fn drop_behind(&self, state: &mut State, i: usize) {
        state.standing[i] = Standing::Away;
        if let Some(reader) = self.reader() {
            // if the thread is gone, the system decides
            let _ = reader.orders.send(Order::Drop(i));
        }
    }

    fn after(&self, i: usize) -> Option<usize> {
        match i + 1 {
            next if next < self.shared.layers.len() => Some(next),
            _ => (self.is_round && i > 0).then_some(0),
        }
    }

    fn reader(&self) -> Option<&Reader> {
        self.reader.get_or_init(|| Reader::start(self.shared.clone())).as_ref()
    }

    fn is_reading(&self) -> bool {
        self.reader().is_some_and(|reader| !reader.thread.is_finished())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// Without a thread, nothing is read ahead.
    fn start(shared: Arc<Shared>) -> Option<Self> {
        let (orders, todo) = mpsc::channel();
        let work = move || {
            for order in todo {
                match order {
                    Order::Read(i) => {
                        shared.layers[i].pages.iter().for_each(Pages::read_ahead);
                        let mut state = shared.lock();
                        if state.standing[i] == Standing::Asked {
                            state.standing[i] = Standing::Here;
                        }
                        shared.changed.notify_all();
                    }
                    Order::Drop(i) => shared.layers[i].pages.iter().for_each(Pages::forget),
                }
            }
        };
        let thread = std::thread::Builder::new().name("weights".into()).spawn(work).ok()?;
        Some(Self { orders, thread })
    }
}

impl Layer {
    /// Pages that lie beside each other become one.
    fn new(mut pages: Vec<Pages>) -> Self {
        let bytes = pages.iter().map(|pages| pages.len() as u64).sum();
        pages.sort_by_key(Pages::place);
        pages.dedup_by(|next, before| before.join(next, GAP_MAX));
        Self { pages, bytes }
    }
}

/// How many of the first layers stay: all if they fit, else those that do beside the two largest.
fn kept(layers: &[Layer], bytes: u64) -> usize {
    if layers.iter().map(|layer| layer.bytes).sum::<u64>() <= bytes {
        return layers.len();
    }
    let window = 2 * layers.iter().map(|layer| layer.bytes).max().unwrap_or(0);
    let room = bytes.saturating_sub(window);
    let sums = layers.iter().scan(0, |sum, layer| {
        *sum += layer.bytes;
        Some(*sum)
    });
    sums.take_while(|sum| *sum <= room).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Unwatched;
    use dg_map::MappedFile;

    const LAYER: usize = 1 << 20;

    /// Layers of 1 MiB in a file of their own.
    fn turns(layers: usize) -> (Turns, MappedFile, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, vec![7; layers * LAYER]).unwrap();
        std::fs::File::open(&path).unwrap().sync_all().unwrap();
        let map = MappedFile::open(&path).unwrap();
        map.forget(0..usize::MAX).unwrap();
        let half = LAYER / 2;
        let pages =
            |i: usize| [i * LAYER + half, i * LAYER].map(|start| Pages::new(&map, start..start + half));
        let turns = Turns::new((0..layers).map(|i| pages(i).to_vec()).collect(), true);
        (Turns { bytes_min: 0, ..turns }, map, folder)
    }

    /// Bytes of the file that are mapped into this process.
    fn resident(folder: &tempfile::TempDir) -> usize {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let path = folder.path().join("weights");
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    fn round(turns: &Turns, layers: usize, mut look: impl FnMut(usize)) {
        for i in 0..layers {
            turns.begin(i, &Unwatched).unwrap();
            look(i);
            turns.end(i);
        }
    }

    #[test]
    fn the_first_layers_stay_and_the_others_come_and_go() {
        let (turns, _map, folder) = turns(8);
        // room for five: three stay beside the two that take turns
        turns.keep(Some(5 * LAYER as u64));
        for _ in 0..3 {
            round(&turns, 8, |i| {
                let (held, least) = (resident(&folder), (i.min(3) + 1) * LAYER);
                // the reader may be one layer ahead, and one that it is yet to drop behind
                assert!((least..=6 * LAYER).contains(&held), "layer {i}: {held}");
            });
        }
        let standing = turns.shared.lock().standing.clone();
        assert_eq!(standing[..3], [Standing::Here; 3]);
        assert_eq!(standing[3..], [Standing::Away; 5]);
    }

    #[test]
    fn all_stay_where_there_is_room_until_there_is_less() {
        let (turns, _map, folder) = turns(4);
        turns.keep(Some(4 * LAYER as u64));
        round(&turns, 4, |_| ());
        assert_eq!(resident(&folder), 4 * LAYER);
        turns.keep(Some(0));
        // the thread that drops is the one that reads: its answer comes after
        turns.begin(0, &Unwatched).unwrap();
        turns.end(0);
        turns.begin(2, &Unwatched).unwrap();
        assert!(resident(&folder) <= 3 * LAYER, "{}", resident(&folder));
    }

    #[test]
    fn nothing_is_done_unasked_or_for_little() {
        let (turns, _map, folder) = turns(2);
        round(&turns, 2, |_| ());
        assert_eq!(resident(&folder), 0);
        let turns = Turns { bytes_min: BYTES_MIN, ..turns };
        turns.keep(Some(2 * LAYER as u64));
        round(&turns, 2, |_| ());
        assert_eq!(resident(&folder), 0);
    }

    #[test]
    fn who_waits_for_weights_can_be_stopped() {
        struct Stopped;
        impl Watch for Stopped {
            fn stop(&self) -> bool {
                true
            }
        }
        let (turns, _map, _folder) = turns(2);
        turns.keep(Some(0));
        // a read that never ends
        turns.shared.lock().standing[0] = Standing::Asked;
        assert!(turns.begin(0, &Stopped).is_err());
    }

    #[test]
    fn pages_beside_each_other_are_one() {
        let (turns, ..) = turns(1);
        assert_eq!(turns.shared.layers[0].pages.len(), 1);
        assert_eq!(turns.bytes(), LAYER as u64);
    }
}
