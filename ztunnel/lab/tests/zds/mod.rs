//! One end of a ZDS connection, played by the test.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use prost::Message;
use redirect::zds::wire::proto::{self, workload_request, workload_response};
use socket2::{Domain, SockAddr, Socket, Type};
use ztunnel_lab::wait::poll;

pub use redirect::zds::wire::proto::workload_request::Payload;

/// Longer than any deadline of the protocol.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct End {
    socket: Socket,
}

/// A packet and its descriptors.
pub struct Packet {
    pub bytes: Vec<u8>,
    pub descriptors: Vec<OwnedFd>,
}

impl End {
    pub fn new(socket: Socket) -> Self {
        socket.set_read_timeout(Some(DEADLINE)).expect("an option");
        socket.set_write_timeout(Some(DEADLINE)).expect("an option");
        Self { socket }
    }

    /// As a ztunnel: connects, and says Hello.
    pub fn ztunnel(path: &Path) -> Self {
        let end = Self::connect(path);
        end.send(&proto::ZdsHello { version: proto::Version::V1.into() }, &[]);
        end
    }

    /// Once somebody listens.
    pub fn connect(path: &Path) -> Self {
        let address = SockAddr::unix(path).expect("a short path");
        let connect = || {
            let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
            socket.connect(&address).ok().map(|()| socket)
        };
        Self::new(poll(DEADLINE, connect).unwrap_or_else(|| panic!("nobody listens on {}", path.display())))
    }

    /// Whoever has gone is seen by the next `receive`.
    pub fn send(&self, message: &impl Message, descriptors: &[RawFd]) {
        self.send_bytes(&message.encode_to_vec(), descriptors);
    }

    pub fn send_bytes(&self, bytes: &[u8], descriptors: &[RawFd]) {
        let control = [ControlMessage::ScmRights(descriptors)];
        let control = if descriptors.is_empty() { &[][..] } else { &control[..] };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let _ = sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None);
    }

    /// `None` at the end of the connection.
    pub fn receive(&self) -> io::Result<Option<Packet>> {
        let mut bytes = vec![0; 4096];
        let mut space = nix::cmsg_space!([RawFd; 8]);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = match recvmsg::<()>(self.socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Err(nix::Error::ECONNRESET) => return Ok(None),
            received => received?,
        };
        let mut descriptors = Vec::new();
        for message in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(found) = message {
                descriptors.extend(found.into_iter().map(own));
            }
        }
        let length = received.bytes;
        bytes.truncate(length);
        Ok((length > 0).then_some(Packet { bytes, descriptors }))
    }

    /// The next request, with the inodes of its descriptors.
    pub fn request(&self) -> (Payload, Vec<u64>) {
        let packet = self.receive().expect("in time").expect("the connection lives");
        let request = proto::WorkloadRequest::decode(packet.bytes.as_slice()).expect("a request");
        let inodes =
            packet.descriptors.iter().map(|found| nix::sys::stat::fstat(found).expect("open").st_ino);
        (request.payload.expect("a payload"), inodes.collect())
    }

    /// As istio-cni: sends one message, and returns the text of the answer.
    pub fn ask(&self, payload: Payload, descriptors: &[RawFd]) -> String {
        self.send(&request(payload), descriptors);
        self.answer()
    }

    pub fn answer(&self) -> String {
        let packet = self.receive().expect("in time").expect("the connection lives");
        let response = proto::WorkloadResponse::decode(packet.bytes.as_slice()).expect("a response");
        let Some(workload_response::Payload::Ack(ack)) = response.payload else { panic!("no Ack") };
        ack.error
    }

    pub fn ack(&self, error: &str) {
        let ack = proto::Ack { error: error.to_owned() };
        self.send(&proto::WorkloadResponse { payload: Some(workload_response::Payload::Ack(ack)) }, &[]);
    }

    /// Answers requests until SnapshotSent, with what `answer` says; which pods were named.
    pub fn snapshot(&self, answer: impl Fn(&str) -> &'static str) -> Vec<String> {
        let mut named = Vec::new();
        loop {
            let (payload, _) = self.request();
            match payload {
                Payload::Add(add) => {
                    self.ack(answer(&add.uid));
                    named.push(add.uid);
                }
                Payload::SnapshotSent(_) => {
                    self.ack("");
                    named.sort();
                    return named;
                }
                other => panic!("{other:?} in a snapshot"),
            }
        }
    }

    /// How long until the other end closes; anything else that comes first is a failure.
    pub fn closes(&self) -> Duration {
        let started = Instant::now();
        match self.receive().expect("in time") {
            None => started.elapsed(),
            Some(packet) => panic!("{} bytes instead of the end", packet.bytes.len()),
        }
    }

    /// Nothing comes for as long as `quiet`.
    pub fn hears_nothing(&self, quiet: Duration) {
        self.socket.set_read_timeout(Some(quiet)).expect("an option");
        let error = self.receive().map(|packet| packet.map(|packet| packet.bytes));
        assert_eq!(error.expect_err("nothing was to come").kind(), io::ErrorKind::WouldBlock);
        self.socket.set_read_timeout(Some(DEADLINE)).expect("an option");
    }
}

/// The socket of istio-cni.
pub struct Cni {
    listener: Socket,
}

impl Cni {
    pub fn bind(path: &Path) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None).expect("a socket");
        listener.bind(&SockAddr::unix(path).expect("a short path")).expect("a free path");
        listener.listen(4).expect("it is bound");
        listener.set_read_timeout(Some(DEADLINE)).expect("an option");
        Self { listener }
    }

    /// A ztunnel that said Hello.
    pub fn accept(&self) -> End {
        let (socket, _) = self.listener.accept().expect("a ztunnel connects in time");
        let end = End::new(socket);
        let packet = end.receive().expect("in time").expect("a Hello");
        let hello = proto::ZdsHello::decode(packet.bytes.as_slice()).expect("a Hello");
        assert_eq!((hello.version(), packet.descriptors.len()), (proto::Version::V1, 0));
        end
    }

    /// Whether somebody waits to be accepted.
    pub fn is_asked(&self, within: Duration) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let timeout = PollTimeout::try_from(within).expect("a short time");
        poll(&mut [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)], timeout).expect("it is open") > 0
    }
}

pub fn request(payload: Payload) -> proto::WorkloadRequest {
    proto::WorkloadRequest { payload: Some(payload) }
}

pub fn add(uid: &str, name: &str, namespace: &str, service_account: &str) -> Payload {
    let info = proto::WorkloadInfo {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
    };
    workload_request::Payload::Add(proto::AddWorkload { uid: uid.to_owned(), workload_info: Some(info) })
}

#[expect(unsafe_code, reason = "nix returns received descriptors as numbers")]
fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}
