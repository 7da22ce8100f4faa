use super::*;
use crate::rules::fixture::fresh_netns;
use crate::rules::{Closed, Uncaptured, deeds, fixture, withdraw};

fn watched() -> (Watch, Form) {
    Closed::install(Uncaptured::Dropped).expect("rules");
    (Watch::open().expect("sockets"), Form::of_this_kernel(Uncaptured::Dropped).expect("a form"))
}

fn told(watch: &Watch) -> bool {
    let mut start = Vec::with_capacity(16);
    [&watch.rules, &watch.routes].into_iter().any(|ear| ear.0.recv(&mut start, libc::MSG_DONTWAIT).is_ok())
}

#[test]
fn what_was_just_installed_is_whole() {
    fresh_netns()
        .run_blocking(|| {
            let (mut watch, form) = watched();
            assert_eq!(watch.audit(&form), Finding::default());
            Closed::install(Uncaptured::Dropped).expect("again");
            assert!(told(&watch));
            watch.drain();
            assert!(!told(&watch));
            assert_eq!(watch.audit(&form), Finding::default(), "handles are others, the form is the same");
        })
        .expect("namespace");
}

#[test]
fn who_is_permissive_from_now_on_has_the_wrong_rules() {
    fresh_netns()
        .run_blocking(|| {
            let (mut watch, form) = watched();
            assert_eq!(watch.audit(&form), Finding::default());
            let permissive = Form::of_this_kernel(Uncaptured::Passes).expect("a form");
            watch.forget();
            let damage = watch.audit(&permissive).damage.expect("seen").to_string();
            assert!(damage.contains("chain leaks was added"), "{damage}");
            Closed::install(Uncaptured::Passes).expect("repaired");
            assert_eq!(watch.audit(&permissive).damage, None);
        })
        .expect("namespace");
}

#[test]
fn every_damage_is_heard_of_and_named() {
    type Deed = fn();
    let deeds: [(Deed, &str, &str); 6] = [
        (|| withdraw().expect("withdrawn"), "flushed", "gone"),
        (deeds::delete_output_chain, "changed", "chain output is missing"),
        (deeds::add_rule_to_replies, "changed", "rule 2 of chain replies was added"),
        (deeds::make_dormant, "changed", "table was changed"),
        (routing::remove_rule_v4, "routing", "IPv4"),
        (routing::override_v6, "routing", "IPv6"),
    ];
    for (deed, kind, words) in deeds {
        fresh_netns()
            .run_blocking(move || {
                let (mut watch, form) = watched();
                assert_eq!(watch.audit(&form), Finding::default());
                deed();
                assert!(told(&watch), "{words}");
                let damage = watch.audit(&form).damage.unwrap_or_else(|| panic!("{words}: not seen"));
                assert_eq!(damage.kind(), kind);
                assert!(damage.to_string().contains(words), "{damage}");
                Closed::install(Uncaptured::Dropped).expect("repaired");
                if words != "IPv6" {
                    assert_eq!(watch.audit(&form).damage, None, "{words}");
                }
            })
            .expect("namespace");
    }
}

#[test]
fn chains_of_others_are_named_once_and_are_no_damage() {
    fresh_netns()
        .run_blocking(|| {
            let (mut watch, form) = watched();
            watch.audit(&form);
            deeds::add_foreign_drop();
            let finding = watch.audit(&form);
            assert_eq!(finding.damage, None);
            let foreign = finding.foreign.expect("new");
            assert!(foreign[0].to_string().contains("chain drops of table theirs (output, priority -200"));
            assert_eq!(watch.audit(&form), Finding::default(), "told once");
        })
        .expect("namespace");
}

#[test]
fn sockets_for_looking_stay_in_their_namespace() {
    let namespace = fixture::Named::make(std::env::temp_dir().join(format!("watch-{}", std::process::id())));
    let (mut watch, form) = fixture::within(&namespace, watched);
    assert_eq!(watch.audit(&form), Finding::default(), "from outside");
    fixture::within(&namespace, || withdraw().expect("withdrawn"));
    assert!(told(&watch));
    assert_eq!(watch.audit(&form).damage, Some(Damage::Table(Difference::Flushed)));
}
