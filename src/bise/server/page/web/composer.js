// The field at the foot: what is typed is sent with Enter; while an answer is made, the button stops it.
import { byId, fit } from './dom.js';

export class Composer {
  /** act: {send(text), stop(), editLast()} */
  constructor(act) {
    this.act = act;
    this.form = byId('composer');
    this.field = byId('composer-text');
    this.button = byId('send');
    this.speaking = false;
    this.form.addEventListener('submit', (event) => { event.preventDefault(); this.#submit(); });
    this.field.addEventListener('keydown', (event) => this.#key(event));
    this.field.addEventListener('input', () => fit(this.field));
  }

  /** speaking: the button stops; ready: the model can be asked. */
  show({ speaking, ready, hint }) {
    Object.assign(this, { speaking, ready });
    this.button.textContent = speaking ? 'Stop' : 'Send';
    this.button.classList.toggle('stop', speaking);
    this.button.disabled = !speaking && !ready;
    this.field.placeholder = hint;
  }

  focus() {
    this.field.focus();
  }

  #submit() {
    if (this.speaking) return this.act.stop();
    const text = this.field.value.trim();
    if (!text || !this.ready) return;
    this.field.value = '';
    fit(this.field);
    this.act.send(text);
  }

  #key(event) {
    const touch = matchMedia('(pointer: coarse)').matches; // there Enter is a line break, the button sends
    if (event.key === 'Enter' && !event.shiftKey && !event.isComposing && !touch) {
      event.preventDefault();
      if (!this.speaking) this.#submit();
    } else if (event.key === 'ArrowUp' && !this.field.value) {
      event.preventDefault();
      this.act.editLast();
    }
  }
}
