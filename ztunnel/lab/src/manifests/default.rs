//! The built-in lab: the files of `ztunnel/lab/default`.

/// File names and texts.
pub const FILES: [(&str, &str); 6] = [
    ("namespaces.yaml", include_str!("../../default/namespaces.yaml")),
    ("nodes.yaml", include_str!("../../default/nodes.yaml")),
    ("front.yaml", include_str!("../../default/front.yaml")),
    ("shop.yaml", include_str!("../../default/shop.yaml")),
    ("secure.yaml", include_str!("../../default/secure.yaml")),
    ("others.yaml", include_str!("../../default/others.yaml")),
];
