//! What is submitted to the ring. tokio-uring takes any entry, and the memory that it names must stay where it is until the
//! kernel is done: every entry is made here, beside what holds its memory.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::marker::PhantomData;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use io_uring::types::{CancelBuilder, Fd};
use io_uring::{cqueue, opcode, squeue};
use nix::libc;
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

use super::group::{self, Group};
use super::large::Large;
use super::{PUSHED, RUNNING};

thread_local! {
    /// What operations held that were abandoned when the ring no longer ran. The driver lets go of it before it cancels them; a thread
    /// frees this only when it ends, and its ring was closed before.
    static OUTLIVES_THE_RING: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

/// An operation in flight that holds `D`. Dropped, it goes on: its result is lost, and `D` is dropped when the kernel is done with it.
pub struct Operation<D: 'static>(InFlightOneshot<Held<D>, Outcome<D>>);

/// What came of it.
pub struct Completion {
    pub result: io::Result<usize>,
    /// The small buffer that the kernel took.
    pub buffer: Option<u16>,
}

pub struct Held<D: 'static>(Option<D>);

pub struct Outcome<D>(PhantomData<D>);

impl<D: 'static> Drop for Held<D> {
    fn drop(&mut self) {
        if let Some(data) = self.0.take()
            && !RUNNING.get()
        {
            let mut data = Some(Box::new(data));
            let kept = OUTLIVES_THE_RING
                .try_with(|all| all.borrow_mut().extend(data.take().map(|data| data as Box<dyn Any>)));
            if kept.is_err() {
                // The thread is about to end; nothing says that the ring is gone.
                std::mem::forget(data);
            }
        }
    }
}

impl<D: 'static> OneshotOutputTransform for Outcome<D> {
    type Output = (Completion, D);
    type StoredData = Held<D>;

    fn transform_oneshot_output(self, mut held: Held<D>, entry: cqueue::Entry) -> Self::Output {
        let buffer = cqueue::buffer_select(entry.flags());
        let result =
            usize::try_from(entry.result()).map_err(|_| io::Error::from_raw_os_error(-entry.result()));
        let data = held.0.take().expect("invariant: it is taken once, here");
        (Completion { result, buffer }, data)
    }
}

impl<D: Unpin> Future for Operation<D> {
    type Output = (Completion, D);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

/// `entry` names no memory but what `data` owns, at an address that does not change when `data` is moved.
fn submit<D: 'static>(entry: squeue::Entry, data: D) -> Operation<D> {
    PUSHED.set(true);
    Operation(begun(UnsubmittedOneshot::new(Held(Some(data)), Outcome(PhantomData), entry)))
}

fn begun<D, T>(operation: UnsubmittedOneshot<D, T>) -> InFlightOneshot<D, T>
where
    T: OneshotOutputTransform<StoredData = D>,
{
    let unwinding = EndsTheProcess;
    let submitted = operation.submit();
    std::mem::forget(unwinding);
    submitted
}

/// tokio-uring panics where the kernel takes no operation, and then waits for ever for one that was never begun. A task would
/// catch that panic, and its worker go on without what the task was for; another proxy is started sooner.
struct EndsTheProcess;

impl Drop for EndsTheProcess {
    fn drop(&mut self) {
        tracing::error!("the kernel takes no more operations of io_uring; IO_BACKEND=epoll does without");
        std::process::abort();
    }
}

fn descriptor(socket: &Rc<TcpStream>) -> Fd {
    Fd(socket.as_raw_fd())
}

/// What is read goes into the small buffer that the kernel takes when there is something.
pub(super) fn receive_small(
    socket: Rc<TcpStream>,
    group: Rc<Group>,
) -> Operation<(Rc<TcpStream>, Rc<Group>)> {
    let entry = opcode::Recv::new(descriptor(&socket), std::ptr::null_mut(), 0).buf_group(group::ID);
    submit(entry.build().flags(squeue::Flags::BUFFER_SELECT), (socket, group))
}

/// Into memory on the heap.
pub(super) fn receive_large(socket: Rc<TcpStream>, mut large: Large) -> Operation<(Rc<TcpStream>, Large)> {
    let space = large.space();
    let length = u32::try_from(space.len()).unwrap_or(u32::MAX);
    let entry = opcode::Recv::new(descriptor(&socket), space.as_mut_ptr().cast(), length);
    submit(entry.build(), (socket, large))
}

/// From memory on the heap. Takes as much as the socket has room for, and waits for room where there is none.
pub(super) fn send(socket: Rc<TcpStream>, bytes: Bytes) -> Operation<(Rc<TcpStream>, Bytes)> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let entry = opcode::Send::new(descriptor(&socket), bytes.as_ptr(), length).flags(libc::MSG_NOSIGNAL);
    submit(entry.build(), (socket, bytes))
}

/// Ends whatever else is in flight on the socket. Nobody waits for it.
pub(super) fn cancel_all(socket: Rc<TcpStream>) {
    let all = CancelBuilder::fd(descriptor(&socket)).all();
    drop(submit(opcode::AsyncCancel2::new(all).build(), socket));
}

/// Gives a small buffer to the kernel: `memory`, which `group` owns.
pub(super) fn provide(group: Rc<Group>, memory: *mut u8, id: u16) {
    let entry = opcode::ProvideBuffers::new(memory, group::SIZE as i32, 1, group::ID, id);
    drop(submit(entry.build(), group));
}

/// Nothing, which takes a place in the queue.
pub(super) fn nothing() {
    struct Unseen;
    impl OneshotOutputTransform for Unseen {
        type Output = ();
        type StoredData = ();

        fn transform_oneshot_output(self, (): (), _: cqueue::Entry) {}
    }
    drop(begun(UnsubmittedOneshot::new((), Unseen, opcode::Nop::new().build())));
}
