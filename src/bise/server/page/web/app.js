// The page: one conversation is open, others may still be answered in the background.
import { Answer } from './answer.js';
import { ask, health } from './api.js';
import { Composer } from './composer.js';
import { ContextBar } from './context.js';
import { byId, copy, el, notice } from './dom.js';
import { listen, showKeys } from './keys.js';
import * as library from './library.js';
import { Manuscript, written } from './manuscript.js';
import { Sheet, defaults } from './settings.js';
import { Shelf } from './shelf.js';
import { Thread } from './thread.js';
import { alternatives, legend } from './tokens.js';
import { Tree, titleOf } from './tree.js';
import { nextTheme, themeName } from './look.js';

const HERE = /^(localhost|127\.|\[::1\])/.test(location.hostname) ? 'this machine' : location.hostname;
const EVERY = 4000; // ms between two saves of an answer that is being made

class Page {
  constructor() {
    this.model = null; // {name, context, window, chat}
    this.state = 'loading'; // as the server's health says
    this.answers = new Map(); // message id -> Answer
    this.trees = new Map(); // conversation id -> Tree, while an answer is made there
    this.tree = new Tree({ settings: defaults() });
    const act = {
      copy: (message) => this.copy(message), edit: (message, text) => this.edit(message, text),
      regenerate: (message) => this.regenerate(message), proceed: (message) => this.speak(message),
      branch: (message, by) => this.branch(message, by), token: (message, index, span) => this.token(message, index, span),
    };
    this.thread = new Thread(act);
    this.manuscript = new Manuscript({ ...act, proceed: () => this.write(), stop: () => this.stop(), again: (message) => this.regenerate(message) });
    this.composer = new Composer({ send: (text) => this.send(text), stop: () => this.stop(), editLast: () => this.editLast() });
    this.sheet = new Sheet((settings) => this.settle(settings));
    this.bar = new ContextBar();
    this.shelf = new Shelf({ open: (id) => this.go(id), renamed: (id, kept) => this.renamed(id, kept), removed: (id) => this.removed(id) });
    this.#buttons();
  }

  async start() {
    addEventListener('hashchange', () => this.arrive());
    addEventListener('beforeunload', (event) => { if (this.speaking || library.saving()) event.preventDefault(); });
    await this.meet();
    this.shelf.refresh();
    await this.arrive();
    if (matchMedia('(pointer: fine)').matches) this.composer.focus();
  }

  /** Find out which model this is; ask again until it is ready. */
  async meet() {
    this.state = await health();
    if (!this.model && this.state !== 'unreachable') {
      const { data } = await ask('GET', '/v1/models').catch(() => ({ data: [] }));
      if (data[0]) this.model = { name: data[0].id, ...data[0].bise };
    }
    if (this.state !== 'ready' || !this.model) setTimeout(() => this.meet().then(() => this.show()), 1000);
  }

  /** After an error: the server may have gone, or come back with another model. */
  #meetAgain() {
    this.model = null;
    this.meet().then(() => this.show());
  }

  get speaking() {
    return this.tree.path.map((message) => this.answers.get(message.id)).find(Boolean);
  }

  get writing() {
    return this.tree.empty ? Boolean(this.model) && !this.model.chat : this.tree.kind === 'text';
  }

  // --- where we are

  go(id) {
    if (location.hash === `#${id}`) this.arrive();
    else location.hash = id;
  }

  async arrive() {
    const id = location.hash.slice(1);
    if (id && id === this.tree.id) return;
    try {
      this.tree = id ? this.trees.get(id) ?? await library.load(id) : new Tree({ settings: defaults() });
    } catch (error) {
      notice(error.message);
      this.tree = new Tree({ settings: defaults() });
      history.replaceState(null, '', '/');
    }
    document.body.classList.remove('shelf-open');
    this.manuscript.clear();
    this.thread.following = true;
    this.shelf.mark(this.tree.id);
    this.show();
  }

  create() {
    if (location.hash) location.hash = '';
    else if (!this.tree.empty) this.arrive();
    history.replaceState(null, '', '/');
    this.composer.focus();
  }

  show() {
    const { tree, speaking } = this;
    document.title = tree.title ? `${tree.title} · bise` : 'bise';
    byId('title').textContent = tree.title;
    const writing = this.writing;
    document.body.classList.toggle('is-writing', writing);
    if (writing) this.manuscript.show(tree, speaking ?? null, this.thread.tokens);
    else this.thread.show(tree, this.answers, this.#welcome());
    this.composer.show({ speaking: Boolean(speaking), ready: this.state === 'ready' && Boolean(this.model), hint: this.#hint() });
    this.sheet.show(tree.settings, !writing);
    this.bar.show(this.model, tree);
  }

  #hint() {
    if (this.state === 'ready') return this.tree.empty ? 'Say something' : 'Go on';
    return { unreachable: 'The server cannot be reached', down: 'The engine is starting again' }[this.state] ?? 'The model is loading';
  }

  #welcome() {
    const { model } = this;
    if (this.state === 'unreachable') return [el('p', {}, 'The server cannot be reached. This page asks again every second.')];
    if (!model) return [el('p', { class: 'waiting' }, 'Waiting for the server')];
    const window = model.window ? `, of which it sees ${model.window.toLocaleString('en')} at once` : '';
    return [
      el('p', { class: 'name' }, model.name),
      el('p', {}, `${model.version}. ${model.context.toLocaleString('en')} tokens of context${window}.`),
      this.state === 'ready' ? el('p', { class: 'aside' }, `Everything stays on ${HERE}.`) : el('p', { class: 'waiting' }, this.#hint()),
    ];
  }

  // --- what is said

  send(text) {
    const { tree } = this;
    tree.kind = 'chat';
    tree.title ||= titleOf(text);
    const question = tree.add('user', text, tree.current);
    this.#ask(question);
  }

  edit(message, text) {
    if (this.speaking) return;
    this.#ask(this.tree.add('user', text, message.parent));
  }

  regenerate(message) {
    if (!this.speaking) this.#ask(this.tree.messages.get(message.parent));
  }

  write() {
    const { tree } = this;
    if (this.speaking || !this.manuscript.text || !this.model) return;
    tree.kind = 'text';
    tree.title ||= titleOf(this.manuscript.text);
    this.#ask(written(tree, this.manuscript.text));
  }

  #ask(question) {
    this.thread.following = true;
    return this.speak(this.tree.add('assistant', '', question.id, { model: this.model?.name ?? '' }));
  }

  /** Begin, or go on with, an answer, and keep it on the server as it grows. */
  async speak(message) {
    const { tree } = this;
    if (this.speaking || !this.model) return;
    tree.current = message.id;
    const answer = new Answer(tree, message, this.model);
    this.answers.set(message.id, answer);
    this.show();
    library.save(tree).then(() => this.#registered(tree));
    let saved = performance.now();
    await answer.run(() => {
      if (this.tree === tree) this.#touch(message);
      if (answer.state !== 'speaking' || performance.now() - saved < EVERY) return;
      saved = performance.now();
      library.save(tree);
    });
    this.answers.delete(message.id);
    this.trees.delete(tree.id);
    if (this.tree === tree) this.show();
    this.#announce(message);
    if (message.finish === 'error') this.#meetAgain();
    await library.save(tree);
    this.shelf.refresh();
  }

  /** The server has given it an id. */
  #registered(tree) {
    if (tree.id && tree.path.some((message) => this.answers.has(message.id))) this.trees.set(tree.id, tree);
    if (this.tree === tree && tree.id) history.replaceState(null, '', `#${tree.id}`);
    this.shelf.current = this.tree.id;
    this.shelf.refresh();
  }

  #touch(message) {
    if (this.tree.kind === 'text') this.manuscript.show(this.tree, this.answers.get(message.id), this.thread.tokens);
    else this.thread.touch(message);
  }

  #announce({ finish, usage }) {
    const line = finish === 'error' ? 'The answer failed.' : `The answer is complete${usage ? `, ${usage.completion} tokens` : ''}.`;
    byId('spoken').textContent = line;
  }

  stop() {
    this.speaking?.stop();
  }

  branch(message, by) {
    if (this.speaking || !this.tree.step(message, by)) return;
    this.thread.following = false;
    this.show();
    library.save(this.tree);
  }

  async copy(message) {
    await copy(message.content);
    notice('Copied.');
  }

  editLast() {
    const last = this.tree.path.findLast((message) => message.role === 'user');
    if (last && !this.speaking) this.thread.views.get(last.id)?.edit();
  }

  settle(settings) {
    this.tree.settings = settings;
    if (!this.tree.empty) library.save(this.tree);
  }

  // --- tokens

  token(message, index, span) {
    alternatives(message.tokens[index], span, (text) => this.fork(message, index, text));
  }

  /** A branch in which `text` stands where token `index` stood; what follows is the model's. The server is given the
      text before it, not the ids: it may cut that into other tokens than the model said. */
  fork(message, index, text) {
    if (this.speaking) return notice('Stop the answer first.');
    const kept = message.tokens.slice(0, index);
    const [, , others] = message.tokens[index];
    const said = message.tokens.map(([piece]) => piece).join('');
    const extra = said.startsWith(' ') && !message.content.startsWith(' ') ? 1 : 0; // a reply's first space is not shown
    const logprob = others.find(([piece]) => piece === text)?.[1] ?? null;
    const content = (kept.map(([piece]) => piece).join('') + text).slice(extra);
    const tokens = [...kept, [text, logprob, others]];
    this.thread.following = true;
    this.speak(this.tree.add('assistant', content, message.parent, { model: message.model, tokens }));
  }

  colour(on = !this.thread.tokens) {
    byId('tokens-toggle').setAttribute('aria-pressed', String(on));
    byId('legend').hidden = !on;
    byId('legend').replaceChildren(...(on ? legend() : []));
    this.thread.colour(on);
    if (this.writing) this.show();
  }

  // --- the shelf

  renamed(id, kept) {
    if (this.tree.id !== id) return;
    Object.assign(this.tree, { title: kept.title, version: kept.version });
    this.show();
  }

  removed(id) {
    this.trees.get(id)?.path.forEach((message) => this.answers.get(message.id)?.stop());
    if (this.tree.id === id) this.create();
  }

  // --- buttons and keys

  #buttons() {
    const on = (id, act) => byId(id).addEventListener('click', act);
    const theme = () => { byId('theme').textContent = `Theme: ${themeName()}`; };
    on('new', () => this.create());
    on('tokens-toggle', () => this.colour());
    on('keys-toggle', showKeys);
    on('theme', () => { nextTheme(); theme(); });
    on('shelf-toggle', () => this.#shelf());
    on('main', (event) => { if (event.target.id === 'main') this.#shelf(false); }); // the shade beside the open shelf
    theme();
    byId('thread').addEventListener('click', (event) => {
      if (event.target.dataset?.copy === 'code') this.copy({ content: event.target.closest('figure').querySelector('code').textContent });
    });
    listen({
      stop: () => this.#escape(), search: () => { this.#shelf(true); byId('search').focus(); byId('search').select(); },
      create: () => this.create(), settings: () => this.sheet.toggle(), tokens: () => this.colour(),
      focus: () => this.composer.focus(), walk: (by) => this.thread.walk(by), message: (name, ...more) => this.#onMessage(name, ...more),
    });
  }

  #shelf(open = !document.body.classList.contains('shelf-open')) {
    document.body.classList.toggle('shelf-open', open);
  }

  #escape() {
    if (document.querySelector(':popover-open, dialog[open]')) return; // these close themselves
    if (this.speaking) this.stop();
    else if (document.body.classList.contains('shelf-open')) this.#shelf(false);
    else if (this.sheet.shown) this.sheet.toggle(false);
    else this.composer.focus();
  }

  #onMessage(name, ...more) {
    const view = this.thread.focused;
    if (!view) return;
    if (name === 'edit') view.edit();
    else if (name !== 'regenerate' || !view.user) this[name](view.message, ...more);
  }
}

new Page().start();
