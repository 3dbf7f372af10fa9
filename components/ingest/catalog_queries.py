"""The tables of the catalog, and its longer questions, in SQL."""

from __future__ import annotations

from components.ingest.file_cache import FileRecord

TABLES = f"""
CREATE TABLE files (name BLOB PRIMARY KEY, kind TEXT, stem BLOB, bytes INTEGER, tag TEXT) WITHOUT ROWID;
CREATE TABLE siblings (stem BLOB, kind TEXT, rank INTEGER, name BLOB, PRIMARY KEY (stem, kind)) WITHOUT ROWID;
CREATE TABLE records (name BLOB PRIMARY KEY, {", ".join(FileRecord._fields[1:])}, fresh INTEGER) WITHOUT ROWID;
CREATE TABLE stale (name BLOB PRIMARY KEY, sha256 TEXT) WITHOUT ROWID;
CREATE TABLE metadata (name BLOB PRIMARY KEY, file BLOB, line INTEGER, text, license, source) WITHOUT ROWID;
CREATE TABLE rejected (name BLOB, reason TEXT, detail TEXT, sha256 TEXT);
"""

# A record is valid if its file, or its archive, is unchanged; a member's also needs the record of its archive, which is
# written only once all of the archive was read.
IS_VALID = """
EXISTS (SELECT 1 FROM files AS f WHERE f.name = records.owner AND f.tag = records.tag AND f.tag <> ''
    AND f.kind IN ({kinds}) AND (records.owner <> records.name OR f.bytes = records.bytes))
AND (records.owner = records.name OR EXISTS (SELECT 1 FROM records AS own WHERE own.name = records.owner))
"""

TO_READ = """
FROM files AS f WHERE f.kind = ? AND NOT EXISTS (SELECT 1 FROM records AS r WHERE r.name = f.name)
AND (f.kind <> 'json' OR EXISTS (SELECT 1 FROM siblings AS i WHERE i.stem = f.stem AND i.kind = 'image'))
"""

CANDIDATES = """
SELECT r.name, r.bytes, r.sha256, r.width, r.height, r.format, r.alpha, r.reason, r.detail,
    m.file, m.text, c.name, c.bytes, c.tag, r.tag,
    COALESCE(j.caption, r.caption), COALESCE(j.caption_bytes, r.caption_bytes),
    COALESCE(j.text, r.text), k.name, k.bytes, k.tag, r.mask, r.mask_bytes,
    COALESCE(m.license, j.license, r.license), COALESCE(m.source, j.source, r.source)
FROM records AS r
LEFT JOIN files AS f ON f.name = r.name
LEFT JOIN metadata AS m ON m.name = r.name
LEFT JOIN siblings AS cs ON cs.stem = f.stem AND cs.kind = 'caption'
LEFT JOIN files AS c ON c.name = cs.name
LEFT JOIN siblings AS js ON js.stem = f.stem AND js.kind = 'json'
LEFT JOIN records AS j ON j.name = js.name
LEFT JOIN siblings AS ks ON ks.stem = f.stem AND ks.kind = 'mask'
LEFT JOIN files AS k ON k.name = ks.name
WHERE r.sha256 <> ''
ORDER BY r.sha256, r.name
"""

# Masks whose image does not exist.
NO_MASKS = """
SELECT name FROM files AS f WHERE kind = 'mask' AND name > ? AND NOT EXISTS (SELECT 1 FROM siblings AS s WHERE
s.stem = f.stem AND s.kind = 'image') ORDER BY name LIMIT ?
"""

# Caption and JSON files that lie beside no image.
NO_CAPTIONS = """
SELECT name, kind, stem FROM files AS f WHERE kind IN ('caption', 'json') AND name > ? AND NOT EXISTS
(SELECT 1 FROM siblings AS s WHERE s.stem = f.stem AND s.kind = 'image') ORDER BY name LIMIT ?
"""
ADD_SIBLING = """
INSERT INTO siblings VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET rank = excluded.rank, name = excluded.name WHERE excluded.rank <= rank
"""

OTHER_FILES = """
SELECT kind || CASE WHEN kind IN ({kinds}) THEN ' files beside no image' ELSE ' files of another layout' END, COUNT(*)
FROM files AS f WHERE kind NOT IN ({kinds}) OR (kind IN ('caption', 'json') AND NOT EXISTS (SELECT 1 FROM siblings AS s
WHERE s.stem = f.stem AND s.kind = 'image')) GROUP BY 1
UNION ALL SELECT detail, SUM(bytes) FROM records WHERE reason = 'unused' GROUP BY detail
"""
