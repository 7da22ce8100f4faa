use rustls::ConnectionTrafficSecrets;
use rustls::crypto::cipher::{AeadKey, Iv};
use tokio::io::ReadBuf;

use super::*;

/// Keys that differ by generation and nothing else.
struct Generations {
    transmit: u8,
    receive: u8,
}

fn keys(generation: u8) -> ExtractedKeys {
    let secrets =
        ConnectionTrafficSecrets::Aes256Gcm { key: AeadKey::from([generation; 32]), iv: Iv::from([7; 12]) };
    (0, secrets)
}

impl Secrets for Generations {
    fn next_transmit(&mut self) -> Result<ExtractedKeys, rustls::Error> {
        self.transmit += 1;
        Ok(keys(self.transmit))
    }

    fn next_receive(&mut self) -> Result<ExtractedKeys, rustls::Error> {
        self.receive += 1;
        Ok(keys(self.receive))
    }
}

fn session(role: Role) -> Session {
    Session {
        role,
        receive: Cipher::new(keys(0)).expect("a key of 32 bytes"),
        transmit: Cipher::new(keys(0)).expect("a key of 32 bytes"),
        secrets: Box::new(Generations { transmit: 0, receive: 0 }),
        owes_update: false,
        without_data: 0,
        message: Vec::new(),
    }
}

/// A peer that seals whatever it likes.
struct Peer(Cipher);

impl Peer {
    fn new() -> Self {
        Self(Cipher::new(keys(0)).expect("a key of 32 bytes"))
    }

    fn record(&mut self, content: Content, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0; bytes.len() + OVERHEAD];
        self.0.seal(content, bytes, &mut out);
        out
    }
}

/// What a reader with a buffer of `room` bytes gets out of `wire`, piece by piece.
fn deliver(session: &mut Session, wire: &[u8], room: usize) -> Result<(Vec<u8>, Delivery), Error> {
    let mut incoming = Incoming::new(Vec::new());
    let mut got = Vec::new();
    let mut wire = wire;
    loop {
        let mut storage = vec![0; room];
        let mut buf = ReadBuf::new(&mut storage);
        let delivery = incoming.deliver(session, &mut buf)?;
        got.extend_from_slice(buf.filled());
        if delivery == Delivery::Closed {
            return Ok((got, delivery));
        }
        if buf.filled().is_empty() {
            incoming.park();
            if wire.is_empty() {
                return Ok((got, delivery));
            }
            // An odd number of bytes, so that records are cut in every place.
            let (now, later) = wire.split_at(wire.len().min(1009));
            incoming.space()[..now.len()].copy_from_slice(now);
            incoming.filled(now.len());
            wire = later;
        }
    }
}

fn error(session: &mut Session, wire: &[u8]) -> Error {
    deliver(session, wire, 4096).expect_err("the record is refused")
}

#[test]
fn data_comes_whole_however_it_is_cut_and_whatever_room_there_is() {
    let text: Vec<u8> = (0..100_003_u32).map(|n| (n % 251) as u8).collect();
    let mut peer = Peer::new();
    let wire: Vec<u8> = text.chunks(15_013).flat_map(|piece| peer.record(Content::Data, piece)).collect();
    for room in [1, 17, 4096, 16_384, 200_000] {
        let (got, delivery) = deliver(&mut session(Role::Server), &wire, room).expect("good records");
        assert!(got == text, "the bytes differ with room for {room}");
        assert_eq!(delivery, Delivery::Done);
    }
}

#[test]
fn padding_is_taken_off() {
    use super::cipher::content;
    assert_eq!(content(b"x\0y\x17\0\0\0").expect("padded data"), (Content::Data, 3));
    assert_eq!(content(&[2, 40, 21]).expect("an alert"), (Content::Alert, 2));
    assert!(matches!(content(&[0; 9]), Err(Error::Unexpected(_))));
    let padded = [&[23], [0; MOST_PLAINTEXT].as_slice()].concat();
    assert_eq!(content(&padded).expect("as long as may be"), (Content::Data, 0));
    assert!(matches!(content(&[padded, vec![0]].concat()), Err(Error::TooLong(_))));
    assert!(matches!(content(&[99]), Err(Error::Unexpected(_))));
}

#[test]
fn a_changed_bit_anywhere_is_refused() {
    let good = Peer::new().record(Content::Data, b"hello");
    for at in 0..good.len() {
        for room in [3, 4096] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            // A longer length waits for bytes that never come: nothing is delivered either.
            match deliver(&mut session(Role::Server), &bad, room) {
                Err(_) => {}
                Ok((got, _)) => {
                    assert!(got.is_empty() && [3, 4].contains(&at), "byte {at} changed and {got:?} came");
                }
            }
        }
    }
}

#[test]
fn a_record_twice_or_out_of_order_is_refused() {
    let mut peer = Peer::new();
    let (first, second) = (peer.record(Content::Data, b"first"), peer.record(Content::Data, b"second"));
    let twice = [first.clone(), first.clone()].concat();
    assert!(matches!(error(&mut session(Role::Server), &twice), Error::Undecryptable));
    let swapped = [second, first].concat();
    assert!(matches!(error(&mut session(Role::Server), &swapped), Error::Undecryptable));
}

#[test]
fn what_is_no_encrypted_record_is_refused() {
    let server = || session(Role::Server);
    assert!(matches!(error(&mut server(), b"GET / HTTP/1.1\r\n\r\n"), Error::Unexpected(_)));
    assert!(matches!(error(&mut server(), &[21, 3, 3, 0, 2, 2, 40]), Error::Unexpected(_)));
    assert!(matches!(error(&mut server(), &[23, 3, 3, 255, 255]), Error::TooLong(65_535)));
    assert!(matches!(error(&mut server(), &[23, 3, 3, 0, 16]), Error::Undecryptable));
    let long = Peer::new().record(Content::Data, &vec![1; MOST_PLAINTEXT + 1]);
    for room in [4096, 100_000] {
        assert!(matches!(deliver(&mut server(), &long, room), Err(Error::TooLong(_))));
    }
}

#[test]
fn alerts_end_the_stream_or_break_it() {
    let mut peer = Peer::new();
    let wire = [
        peer.record(Content::Data, b"all"),
        peer.record(Content::Alert, &[1, 90]),
        peer.record(Content::Alert, &[1, 0]),
    ];
    let (got, delivery) = deliver(&mut session(Role::Server), &wire.concat(), 4096).expect("a clean end");
    assert_eq!((got.as_slice(), delivery), (&b"all"[..], Delivery::Closed));

    let fatal = Peer::new().record(Content::Alert, &[2, 48]);
    let told = error(&mut session(Role::Server), &fatal);
    assert!(told.to_string().contains("UnknownCA") && told.alert().is_none(), "{told}");
    let short = Peer::new().record(Content::Alert, &[2]);
    assert!(matches!(error(&mut session(Role::Server), &short), Error::Malformed(_)));
}

#[test]
fn a_key_update_changes_the_key_and_is_answered_once() {
    let mut peer = Peer::new();
    let mut wire = Vec::new();
    for generation in 1..=3 {
        wire.extend(peer.record(Content::Handshake, &[24, 0, 0, 1, 1]));
        peer.0 = Cipher::new(keys(generation)).expect("a key of 32 bytes");
        wire.extend(peer.record(Content::Data, &[generation]));
    }
    let mut session = session(Role::Client);
    let (got, _) = deliver(&mut session, &wire, 4096).expect("good records");
    assert_eq!(got, [1, 2, 3]);
    let mut outgoing = Outgoing::default();
    outgoing.answer_update(&mut session).expect("keys are there");
    let answer = outgoing.unsent().to_vec();
    outgoing.answer_update(&mut session).expect("nothing to do");
    assert_eq!(outgoing.unsent(), answer, "one answer for three requests");
    let mut plain = [0; 6];
    let opened = Cipher::new(keys(0)).expect("a key of 32 bytes").open_into(
        &answer[..HEADER],
        &answer[HEADER..],
        &mut plain,
    );
    assert_eq!(opened.expect("sealed with the old key"), (Content::Handshake, 5));
    assert_eq!(plain[..5], [24, 0, 0, 1, 0]);
}

#[test]
fn odd_handshake_messages_are_refused_and_tickets_ignored() {
    let handshake = |bytes: &[u8]| Peer::new().record(Content::Handshake, bytes);
    let ticket = [4, 0, 0, 3, 1, 2, 3];
    assert_eq!(deliver(&mut session(Role::Client), &handshake(&ticket), 64).expect("ignored").0, b"");
    assert!(matches!(error(&mut session(Role::Server), &handshake(&ticket)), Error::Unexpected(_)));
    for bytes in
        [&[24, 0, 0, 1, 2][..], &[24, 0, 0, 0], &[24, 0, 0, 1, 0, 24, 0, 0, 1, 0], &[13, 0, 0, 0], &[]]
    {
        assert!(deliver(&mut session(Role::Client), &handshake(bytes), 64).is_err(), "{bytes:?}");
    }
    let odd = error(&mut session(Role::Client), &handshake(&[24, 0, 0, 1, 2]));
    assert_eq!(odd.alert(), Some(rustls::AlertDescription::IllegalParameter));
    let mut peer = Peer::new();
    let cut = [peer.record(Content::Handshake, &ticket[..5]), peer.record(Content::Handshake, &ticket[5..])];
    assert_eq!(deliver(&mut session(Role::Client), &cut.concat(), 64).expect("ignored").0, b"");
    let mut peer = Peer::new();
    let between = [peer.record(Content::Handshake, &ticket[..5]), peer.record(Content::Data, b"x")];
    assert!(matches!(error(&mut session(Role::Client), &between.concat()), Error::Unexpected(_)));
    let mut peer = Peer::new();
    let endless: Vec<u8> = (0..6)
        .flat_map(|part| {
            peer.record(
                Content::Handshake,
                &if part == 0 { [4, 255, 255, 255].repeat(4000) } else { vec![1; 16_000] },
            )
        })
        .collect();
    assert!(matches!(error(&mut session(Role::Client), &endless), Error::Malformed(_)));
}

#[test]
fn records_without_data_do_not_go_on_for_ever() {
    let mut peer = Peer::new();
    let empty: Vec<u8> = (0..=MOST_WITHOUT_DATA).flat_map(|_| peer.record(Content::Data, b"")).collect();
    assert!(matches!(error(&mut session(Role::Server), &empty), Error::Unexpected(_)));
    let mut peer = Peer::new();
    let spread: Vec<u8> = (0..100)
        .flat_map(|_| [peer.record(Content::Data, b""), peer.record(Content::Data, b"x")].concat())
        .collect();
    assert_eq!(deliver(&mut session(Role::Server), &spread, 64).expect("data between").0.len(), 100);
}

#[test]
fn random_bytes_never_pass_and_never_panic() {
    use proptest::prelude::*;
    proptest!(|(bytes in proptest::collection::vec(any::<u8>(), 0..2000), room in 1..5000_usize)| {
        if let Ok((got, delivery)) = deliver(&mut session(Role::Server), &bytes, room) {
            prop_assert!(got.is_empty());
            prop_assert_eq!(delivery, Delivery::Done);
        }
    });
}

#[test]
fn pieces_of_any_size_are_sealed_in_order() {
    use proptest::prelude::*;
    use std::io::IoSlice;
    let sizes =
        proptest::collection::vec(prop_oneof![0..40_usize, 16_000..17_000_usize, 0..300_000_usize], 0..12);
    proptest!(ProptestConfig::with_cases(64), |(sizes in sizes)| {
        let text: Vec<Vec<u8>> = sizes.iter().enumerate().map(|(n, &size)| vec![n as u8 + 1; size]).collect();
        let pieces: Vec<IoSlice<'_>> = text.iter().map(|piece| IoSlice::new(piece)).collect();
        let (mut near, mut outgoing) = (session(Role::Client), Outgoing::default());
        let sealed = outgoing.seal(&mut near, &pieces).expect("keys are there");
        let whole = text.concat();
        prop_assert!(sealed == whole.len() || sealed >= 250_000, "{sealed} of {}", whole.len());
        let (got, _) = deliver(&mut session(Role::Server), outgoing.unsent(), 20_000).expect("good records");
        prop_assert!(got == whole[..sealed]);
        // There is always room for the last word.
        outgoing.alert(&mut near, rustls::AlertDescription::CloseNotify);
        let (_, end) = deliver(&mut session(Role::Server), outgoing.unsent(), 20_000).expect("good records");
        prop_assert_eq!(end, Delivery::Closed);
    });
}
