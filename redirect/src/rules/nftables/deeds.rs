//! What others do to a namespace's rules, for tests.

use super::*;

pub(crate) fn delete_output_chain() {
    // A chain goes only when it is empty.
    let of_output = Attributes::new().text(1, TABLE).text(2, "output");
    let rules = request("rules of output", libc::NFT_MSG_DELRULE, 0).with(&of_output);
    let chain = Attributes::new().text(1, TABLE).text(3, "output");
    commit(vec![rules, request("chain output", libc::NFT_MSG_DELCHAIN, 0).with(&chain)]).expect("deleted");
}

pub(crate) fn add_rule_to_replies() {
    commit(vec![add_rule(TABLE, "replies", "theirs", &Expressions::new().accept())]).expect("added");
}

pub(crate) fn make_dormant() {
    let attributes = Attributes::new().text(1, TABLE).big_endian(2, 1);
    commit(vec![request("table", libc::NFT_MSG_NEWTABLE, 0).with(&attributes)]).expect("dormant");
}

pub(crate) fn add_foreign_drop() {
    commit(vec![
        add_table("theirs"),
        add_chain("theirs", "drops", "filter", HOOK_OUTPUT, -200),
        add_rule("theirs", "drops", "theirs", &Expressions::new().tcp().drop()),
    ])
    .expect("added");
}

/// Exempts everything from connection tracking.
pub(crate) fn track_nothing() {
    let mut batch = vec![add_table("theirs")];
    for (name, hook) in [("arrives", HOOK_PREROUTING), ("leaves", HOOK_OUTPUT)] {
        batch.push(add_chain("theirs", name, "filter", hook, -300));
        batch.push(add_rule("theirs", name, "theirs", &Expressions::new().untracked()));
    }
    commit(batch).expect("added");
}

pub(crate) fn remove_foreign() {
    remove("theirs").expect("removed");
}
