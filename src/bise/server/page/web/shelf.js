// The list of conversations at the side: by day, found by their words, renamed, exported, removed.
import * as library from './library.js';
import { byId, el, notice, save, word } from './dom.js';

const DAY = 86400;

export class Shelf {
  /** act: {open(id), renamed(id, title), removed(id)} */
  constructor(act) {
    this.act = act;
    this.box = byId('shelf-list');
    this.search = byId('search');
    this.current = null;
    let soon = 0;
    this.search.addEventListener('input', () => { clearTimeout(soon); soon = setTimeout(() => this.refresh(), 150); });
    this.search.addEventListener('keydown', (event) => {
      if (event.key === 'ArrowDown') this.box.querySelector('a')?.focus();
      else if (event.key === 'Enter') this.box.querySelector('a')?.click();
    });
    this.box.addEventListener('keydown', (event) => this.#walk(event));
    byId('export').addEventListener('click', () => this.#export(null, 'bise-conversations'));
    byId('import').addEventListener('click', () => byId('import-file').click());
    byId('import-file').addEventListener('change', (event) => this.#import(event.target));
  }

  async refresh() {
    const words = this.search.value.trim();
    try {
      const found = await library.list(words);
      if (words === this.search.value.trim() && !this.renaming) this.#draw(found, words);
    } catch (error) {
      this.box.replaceChildren(el('p', { class: 'aside' }, error.message));
    }
  }

  /** Which one is open. */
  mark(id) {
    this.current = id;
    for (const item of this.box.querySelectorAll('.item')) {
      const here = item.dataset.id === id;
      item.classList.toggle('here', here);
      item.querySelector('a')?.[here ? 'setAttribute' : 'removeAttribute']('aria-current', 'page');
    }
  }

  #draw(found, words) {
    const nodes = [];
    let group = '';
    for (const each of found) {
      const day = words ? 'Found' : dayOf(each.updated);
      if (day !== group) nodes.push(el('h2', {}, (group = day)));
      nodes.push(each.damaged ? damaged(each) : this.#item(each, words));
    }
    if (!found.length) nodes.push(el('p', { class: 'aside' }, words ? 'Nothing found.' : 'No conversations yet.'));
    this.box.replaceChildren(...nodes);
    this.mark(this.current);
  }

  #item({ id, title, snippet }, words) {
    const name = title || 'Untitled';
    const link = el('a', { href: `#${id}`, title: name }, el('span', { class: 'name' }, name),
      snippet ? el('span', { class: 'snippet' }, ...marked(snippet, words)) : null);
    const item = el('div', { class: 'item', 'data-id': id }, link, el('span', { class: 'item-tools' },
      word('Rename', () => this.#rename(item, id, name), { 'aria-label': `Rename ${name}` }),
      word('Export', () => this.#export(id, name), { 'aria-label': `Export ${name}` }),
      word('Delete', () => this.#remove(id), { 'aria-label': `Delete ${name}` })));
    return item;
  }

  #rename(item, id, name) {
    const field = el('input', { class: 'rename', 'aria-label': 'New title', maxlength: 200, value: name });
    this.renaming = true; // the list stands still
    const done = async (keep) => {
      if (!this.renaming) return;
      this.renaming = false;
      const title = field.value.trim();
      if (keep && title && title !== name) await this.#told(async () => this.act.renamed(id, await library.rename(id, title)));
      await this.refresh();
      this.box.querySelector(`[data-id="${id}"] a`)?.focus();
    };
    field.addEventListener('keydown', (event) => {
      if (event.key === 'Enter') done(true);
      if (event.key === 'Escape') done(false);
      event.stopPropagation();
    });
    field.addEventListener('blur', () => done(true));
    item.replaceChildren(field);
    field.select();
  }

  async #remove(id) {
    await this.#told(async () => {
      const kept = await library.exported(id);
      await library.remove(id);
      this.act.removed(id);
      notice('Deleted.', 'Undo', () => this.#told(async () => { this.act.open((await library.imported(kept))[0]); }));
    });
    await this.refresh();
  }

  #export(id, name) {
    const file = `${name.replace(/[^\p{L}\p{N}]+/gu, '-').slice(0, 60) || 'conversation'}.json`;
    return this.#told(async () => save(file, JSON.stringify(await library.exported(id), null, 1)));
  }

  async #import(input) {
    const [file] = input.files;
    input.value = '';
    if (!file) return;
    await this.#told(async () => {
      let read;
      try { read = JSON.parse(await file.text()); } catch { throw new Error(`${file.name} is not JSON.`); }
      const ids = await library.imported(read);
      notice(`Imported ${ids.length} ${ids.length === 1 ? 'conversation' : 'conversations'}.`);
      if (ids.length) this.act.open(ids[0]);
    });
    await this.refresh();
  }

  async #told(act) {
    try { await act(); } catch (error) { notice(error.message); }
  }

  #walk(event) {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!by || event.target.tagName !== 'A') return;
    const all = [...this.box.querySelectorAll('a')];
    all[all.indexOf(event.target) + by]?.focus();
    event.preventDefault();
  }
}

function damaged({ id, error }) {
  return el('div', { class: 'item damaged', title: error }, el('span', { class: 'name' }, `${id}: damaged`), el('span', { class: 'snippet' }, error));
}

function dayOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  if (time >= midnight) return 'Today';
  if (time >= midnight - DAY) return 'Yesterday';
  if (time >= midnight - 6 * DAY) return 'This week';
  return new Date(time * 1000).toLocaleDateString('en', { month: 'long', year: 'numeric' });
}

/** The snippet with the words that were looked for marked. */
function marked(snippet, words) {
  const at = snippet.toLowerCase().indexOf(words.toLowerCase());
  if (at < 0) return [snippet];
  const end = at + words.length;
  return [snippet.slice(0, at), el('mark', {}, snippet.slice(at, end)), snippet.slice(end)];
}
