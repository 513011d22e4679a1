// How the model chooses its words: the sheet at the side, and what goes into a request.
import { byId, el, notice, word } from './dom.js';

const KEPT = 'bise.defaults';
const OWN = { system: '', temperature: 0.7, top_p: 1, min_p: 0.05, top_k: 0, repetition_penalty: 1, max_tokens: null, seed: null };

// name, label, least, most, step, what it does
const SLIDERS = [
  ['temperature', 'Temperature', 0, 2, 0.05, 'Lower is steadier, higher is wilder. 0 always takes the likeliest token.'],
  ['top_p', 'Top p', 0.05, 1, 0.01, 'Only the likeliest tokens that together reach this share.'],
  ['min_p', 'Min p', 0, 0.5, 0.01, 'Only tokens at least this likely, measured against the likeliest.'],
  ['top_k', 'Top k', 0, 200, 1, 'Only so many of the likeliest. 0: all.'],
  ['repetition_penalty', 'Repetition penalty', 1, 1.5, 0.01, 'Above 1, what was said lately becomes less likely.'],
];
const NUMBERS = [
  ['max_tokens', 'Longest answer', 1, 1000000, 'as long as fits', 'In tokens; a text without chat grows by 256.'],
  ['seed', 'Seed', 0, Number.MAX_SAFE_INTEGER, 'by chance', 'The same seed, settings and text give the same answer.'],
];

export function defaults() {
  try { return { ...OWN, ...JSON.parse(localStorage.getItem(KEPT) ?? '{}') }; } catch { return { ...OWN }; }
}

/** The part of a request that the settings decide. */
export function sampling(settings) {
  const { system, ...rest } = { ...OWN, ...settings };
  return Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== null));
}

export class Sheet {
  /** changed(settings): called after each change. */
  constructor(changed) {
    this.box = byId('settings');
    this.button = byId('settings-toggle');
    this.changed = changed;
    this.settings = { ...OWN };
    this.button.addEventListener('click', () => this.toggle());
  }

  get shown() {
    return !this.box.hidden;
  }

  toggle(shown = !this.shown) {
    this.box.hidden = !shown;
    this.button.setAttribute('aria-expanded', String(shown));
    if (shown) this.box.querySelector('textarea, input')?.focus({ preventScroll: true });
    else this.button.focus();
  }

  /** Drawn again only where something else is to be shown: a field that is being typed in stays. */
  show(settings, chat = true) {
    const now = JSON.stringify([{ ...OWN, ...settings }, chat]);
    if (now !== JSON.stringify([this.settings, this.chat])) this.#draw({ ...OWN, ...settings }, chat);
  }

  #draw(settings, chat) {
    Object.assign(this, { settings, chat });
    const rows = [...SLIDERS.map((row) => this.#slider(...row)), ...NUMBERS.map((row) => this.#number(...row))];
    this.box.replaceChildren(
      el('div', { class: 'sheet-head' }, el('h2', {}, 'Settings'), word('Close', () => this.toggle(false))),
      ...(chat ? [this.#system()] : []), ...rows,
      el('div', { class: 'sheet-foot' }, word('Reset', () => this.#reset(chat)), word('Use for new conversations', () => this.#keep())),
    );
  }

  #set(name, value) {
    this.settings[name] = value;
    this.changed({ ...this.settings });
  }

  #reset(chat) {
    this.#draw({ ...OWN }, chat);
    this.changed({ ...this.settings });
  }

  #keep() {
    try { localStorage.setItem(KEPT, JSON.stringify(this.settings)); } catch { /* forbidden: nothing is kept */ }
    notice('New conversations will begin with these settings.');
  }

  #system() {
    const area = el('textarea', { rows: 4, placeholder: 'None', maxlength: 100000, 'aria-describedby': 'about-system' });
    area.value = this.settings.system;
    area.addEventListener('change', () => this.#set('system', area.value));
    return el('label', { class: 'field' }, el('span', { class: 'name' }, 'System prompt'), area,
      el('small', { id: 'about-system' }, 'Told to the model before everything else.'));
  }

  #slider(name, label, min, max, step, about) {
    const shown = el('output', {});
    const range = el('input', { type: 'range', min, max, step, name, 'aria-describedby': `about-${name}` });
    range.value = this.settings[name];
    const tell = () => { shown.value = Number(range.value).toFixed(step < 1 ? 2 : 0); };
    tell();
    range.addEventListener('input', tell);
    range.addEventListener('change', () => this.#set(name, Number(range.value)));
    return el('label', { class: 'field' }, el('span', { class: 'name' }, label, shown), range, el('small', { id: `about-${name}` }, about));
  }

  #number(name, label, min, max, placeholder, about) {
    const input = el('input', { type: 'number', min, max, step: 1, name, placeholder, inputmode: 'numeric', 'aria-describedby': `about-${name}` });
    input.value = this.settings[name] ?? '';
    input.addEventListener('change', () => {
      if (!input.checkValidity()) input.value = '';
      this.#set(name, input.value === '' ? null : Number(input.value));
    });
    return el('label', { class: 'field' }, el('span', { class: 'name' }, label), input, el('small', { id: `about-${name}` }, about));
  }
}
