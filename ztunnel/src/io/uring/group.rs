//! The small buffers of a ring. They are the kernel's until it fills one; what is in it is copied, and it is the kernel's again.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::TcpStream;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::operation::{self, Operation};

/// A ring has one group of them.
pub(super) const ID: u16 = 0;
pub(super) const SIZE: usize = crate::io::buffer::COPY_UP_TO;
/// As many connections may have bytes in one turn of the loop; more of them wait for the next.
const COUNT: u16 = 64;

type Receiving = Operation<(Rc<TcpStream>, Rc<Group>)>;

pub struct Group {
    /// One allocation for each, so that the kernel writes into one while another is read.
    buffers: RefCell<Vec<Box<[u8]>>>,
}

thread_local! {
    static GROUP: RefCell<Option<Rc<Group>>> = const { RefCell::new(None) };
    static ABANDONED: Abandoned = const { Abandoned { all: RefCell::new(None), waker: Cell::new(None) } };
}

/// Receives that nobody waits for any more. They may have taken a buffer all the same, which only their result tells.
struct Abandoned {
    all: RefCell<Option<FuturesUnordered<Receiving>>>,
    waker: Cell<Option<Waker>>,
}

impl Group {
    /// What was received in a buffer that the kernel filled.
    pub(super) fn read<T>(&self, id: u16, count: usize, take: impl FnOnce(&[u8]) -> T) -> T {
        take(&self.buffers.borrow()[usize::from(id)][..count])
    }

    pub(super) fn give_back(self: &Rc<Self>, id: u16) {
        if super::is_running() {
            // A pointer of its own each time: reading ended what the kernel was given before.
            let memory = self.buffers.borrow_mut()[usize::from(id)].as_mut_ptr();
            operation::provide(self.clone(), memory, id);
        }
    }
}

/// Makes the buffers of this thread's ring.
pub(super) fn open() {
    let buffers = (0..COUNT).map(|_| vec![0; SIZE].into_boxed_slice()).collect();
    let group = Rc::new(Group { buffers: RefCell::new(buffers) });
    (0..COUNT).for_each(|id| group.give_back(id));
    GROUP.set(Some(group));
    ABANDONED.with(|abandoned| abandoned.all.replace(Some(FuturesUnordered::new())));
}

pub(super) fn close() {
    ABANDONED.with(|abandoned| drop(abandoned.all.take()));
    GROUP.take();
}

/// Of this thread's ring; none after it was told to end.
pub(super) fn current() -> Option<Rc<Group>> {
    GROUP.with_borrow(Clone::clone)
}

/// For a receive that is no longer waited for.
pub(super) fn abandon(receiving: Receiving) {
    ABANDONED.with(|abandoned| {
        if let Some(all) = &*abandoned.all.borrow() {
            all.push(receiving);
            abandoned.waker.take().into_iter().for_each(Waker::wake);
        }
    });
}

/// Gives back what abandoned receives took; for ever.
pub(super) async fn take_back() {
    poll_fn(|context| ABANDONED.with(|abandoned| abandoned.poll(context))).await;
}

impl Abandoned {
    fn poll(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut all = self.all.borrow_mut();
        let Some(all) = &mut *all else { return Poll::Ready(()) };
        while let Poll::Ready(Some((completion, (_, group)))) = all.poll_next_unpin(context) {
            completion.buffer.into_iter().for_each(|id| group.give_back(id));
        }
        self.waker.set(Some(context.waker().clone()));
        Poll::Pending
    }
}
