// The conversations on the server: listed, opened, and saved without overwriting what another tab saved.
import { ask } from './api.js';
import { notice } from './dom.js';
import { Tree } from './tree.js';

const ROOT = '/api/conversations';

export const list = async (words = '') =>
  (await ask('GET', words ? `${ROOT}?search=${encodeURIComponent(words)}` : ROOT)).conversations;
export const load = async (id) => new Tree(await ask('GET', `${ROOT}/${id}`));
export const remove = (id) => ask('DELETE', `${ROOT}/${id}`);
export const rename = (id, title) => ask('PATCH', `${ROOT}/${id}`, { title });
export const exported = (id) => ask('GET', id ? `${ROOT}/${id}/export` : `${ROOT}/export`);

const MOST = 4_000_000; // characters of one import: the server takes bodies of 8 MiB

/** An export becomes new conversations, in as many requests as it needs; -> their ids. */
export async function imported(file) {
  const ids = [];
  for (const conversations of parcels(file.conversations)) {
    ids.push(...(await ask('POST', `${ROOT}/import`, { ...file, conversations })).imported);
  }
  return ids;
}

function parcels(conversations) {
  if (!Array.isArray(conversations)) return [conversations]; // no export: the server says what is wrong with it
  const parcels = [[]];
  let size = 0;
  for (const each of conversations) {
    const more = JSON.stringify(each).length;
    if (size && size + more > MOST) {
      parcels.push([]);
      size = 0;
    }
    parcels.at(-1).push(each);
    size += more;
  }
  return parcels;
}

const last = new WeakMap(); // tree -> its save that is under way, or waits
let open = 0;
const TRIES = 8;

/** Whether something is not on the server's disk yet. */
export const saving = () => open > 0;

/** Save in order; resolves when the tree, as it was at this call or later, is on the disk. */
export function save(tree) {
  open += 1;
  const next = (last.get(tree) ?? Promise.resolve()).then(() => attempt(tree)).finally(() => { open -= 1; });
  last.set(tree, next);
  return next;
}

/** Never throws: what cannot be saved is said, and tried again with the next save. */
async function attempt(tree) {
  for (let tries = 0; tries < TRIES; tries += 1) {
    try {
      return await write(tree);
    } catch (error) {
      const again = await mend(tree, error, tries).catch(() => false);
      if (!again) return notice(`Not saved: ${error.message}`);
    }
  }
}

/** Whether it is worth another try, after what could be done about it. */
async function mend(tree, { status, code }, tries) {
  if (status === 0) {
    notice('Not saved yet: the server cannot be reached.');
    await new Promise((done) => setTimeout(done, 500 * 2 ** tries));
    return true;
  }
  if (status === 409 && code === 'changed') {
    tree.merge(await ask('GET', `${ROOT}/${tree.id}`));
    notice('Another tab had saved this conversation: both are kept.');
    return true;
  }
  if (status === 404 && tree.id) { // deleted elsewhere, and still in use here
    tree.id = null;
    return true;
  }
  return status === 413 && lighten(tree);
}

async function write(tree) {
  const kept = tree.id
    ? await ask('PUT', `${ROOT}/${tree.id}`, tree.kept, { 'If-Match': `"${tree.version}"` })
    : await ask('POST', ROOT, tree.kept);
  tree.id = kept.id;
  tree.version = kept.version;
}

/** Too large to keep: the oldest answer gives up its tokens; its text stays. */
function lighten(tree) {
  const heavy = [...tree.messages.values()].find((message) => message.tokens?.length);
  if (heavy) delete heavy.tokens;
  return Boolean(heavy);
}
