"""The house as docs/architecture.md draws it against the house as it is: which rooms there are, what may include
what, and that every file which the documentation names exists."""

import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(sys.argv.pop() if len(sys.argv) > 1 else ".").resolve()
TOP_ROOMS = ("kernels", "data", "model", "optim", "parallel", "fault", "app")
SOURCE = re.compile(r"\.(cpp|h|cu)$")
# What the tables say of rooms: "| `app/plan/` | ... | config, console, job |".
ROW = re.compile(r"^\| `([a-z]+/(?:[a-z]+/)?)` \|[^|]*\|([^|]*)\|$", re.MULTILINE)


def files():
    """All files that git knows or would take; without git those that are there."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0:
        return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]
    skipped = re.compile(r"^(build|\.deps|\.git)")
    names = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return [str(name) for name in names if not skipped.match(name.parts[0])]


def room_of(path):
    """"app/plan/" of app/plan/time.cpp, "data/" of data/loader.h."""
    return "/".join(path.split("/")[:-1]) + "/"


def includes_of(path):
    return re.findall(r'^#include "([^"]+)"', (ROOT / path).read_text(), re.MULTILINE)


class House(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.files = files()
        cls.sources = [f for f in cls.files if SOURCE.search(f) and f.split("/")[0] in TOP_ROOMS]
        text = (ROOT / "docs" / "architecture.md").read_text()
        cls.allowed = {room: allowed.strip() for room, allowed in ROW.findall(text)}

    def inner_rooms_of(self, top):
        return {room for room in self.allowed if room.startswith(top + "/") and room.count("/") == 2}

    def test_every_room_is_in_the_picture(self):
        rooms = {room_of(f) for f in self.sources if f != "app/main.cpp"}
        self.assertEqual(rooms - set(self.allowed), set(), "rooms that docs/architecture.md does not show")
        inner = {room for room in self.allowed if room.count("/") == 2}
        self.assertEqual(inner - rooms, set(), "rooms that do not exist")

    def test_inner_rooms_include_what_they_may(self):
        wrong = []
        for path in self.sources:
            room = room_of(path)
            top = path.split("/")[0]
            if path == "app/main.cpp" or room not in self.inner_rooms_of(top):
                continue
            words = re.findall(r"[a-z]+", self.allowed[room])
            may = {f"{top}/{word}/" for word in words} | {room}
            for included in includes_of(path):
                if included.startswith(top + "/") and room_of(included) not in may:
                    wrong.append(f"{path} includes {included}")
        self.assertEqual(wrong, [])

    def test_inner_rooms_have_an_order(self):
        """Who may include whom goes round in no circle."""
        for top in TOP_ROOMS:
            rooms = self.inner_rooms_of(top)
            below = {room: {f"{top}/{word}/" for word in re.findall(r"[a-z]+", self.allowed[room])} for room in rooms}
            while below:
                lowest = [room for room, others in below.items() if not others & set(below)]
                self.assertTrue(lowest, f"rooms that include each other: {sorted(below)}")
                for room in lowest:
                    del below[room]

    def test_cmake_looks_for_headers_of_others(self):
        """A name that is a file here would never be found among a library's, which then counts as absent."""
        ours = []
        for path in (f for f in self.files if f.endswith("CMakeLists.txt")):
            for name in re.findall(r"find_path\(\s*\w+ ([\w./]+)", (ROOT / path).read_text()):
                if (ROOT / path).parent.joinpath(name).exists():
                    ours.append(f"{path}: {name}")
        self.assertEqual(ours, [])

    def test_paths_in_the_documentation_exist(self):
        known = set(self.files) | {str(p) + "/" for f in self.files for p in pathlib.PurePath(f).parents}
        folders = {name.split("/")[0] for name in known if "/" in name}
        missing = []
        for page in ["README.md"] + [f for f in self.files if re.match(r"docs/.*\.md$", f)]:
            for name in re.findall(r"`([A-Za-z_.]+/[A-Za-z0-9_./*-]*)`", (ROOT / page).read_text()):
                if name.split("/")[0] not in folders:
                    continue
                pattern = re.compile(re.escape(name).replace(r"\*", "[^/]*") + "$")
                if not any(pattern.match(k) for k in known):
                    missing.append(f"{page}: {name}")
        self.assertEqual(missing, [])


if __name__ == "__main__":
    unittest.main()
