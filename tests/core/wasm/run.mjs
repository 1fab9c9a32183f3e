// Do the core's tests pass on a 32-bit MicroPython, whose small integers are as small as a chip's?
//
// `node run.mjs [-v] [module ...]`; the arguments are run.py's. The Python files of the folders in MICROPYPATH (as
// on the unix interpreter) are copied into the interpreter's own file system. `npm ci` in this folder installs it.
import { readdirSync, readFileSync } from "node:fs";
import { loadMicroPython } from "@micropython/micropython-webassembly-pyscript";

// Objects are as large as a chip's; the tests' own source is compiled into the same heap.
const HEAP_BYTES = 4 * 1024 * 1024;

const mp = await loadMicroPython({ heapsize: HEAP_BYTES, stdout: (line) => console.log(line) });

function copyFolder(from, to) {
    for (const entry of readdirSync(from, { withFileTypes: true })) {
        if (entry.isDirectory() && entry.name !== "node_modules" && !entry.name.startsWith("__")) {
            if (!mp.FS.analyzePath(`${to}/${entry.name}`).exists) {
                mp.FS.mkdir(`${to}/${entry.name}`);
            }
            copyFolder(`${from}/${entry.name}`, `${to}/${entry.name}`);
        } else if (entry.name.endsWith(".py")) {
            mp.FS.writeFile(`${to}/${entry.name}`, readFileSync(`${from}/${entry.name}`));
        }
    }
}

mp.FS.mkdir("/core");
for (const folder of process.env.MICROPYPATH.split(":")) {
    copyFolder(folder, "/core");
}
mp.runPython("import sys; sys.path.insert(0, '/core'); import run");
mp.globals.set("arguments", process.argv.slice(2).join(" "));
mp.runPython("failed = run.main(arguments.split())");
process.exit(mp.globals.get("failed") ? 1 : 0);
