package aether.bench;

import com.fasterxml.jackson.annotation.JsonCreator;
import com.fasterxml.jackson.annotation.JsonProperty;
import java.util.ArrayList;
import java.util.List;
import org.apache.pekko.actor.typed.ActorRef;
import org.apache.pekko.persistence.typed.PersistenceId;
import org.apache.pekko.persistence.typed.javadsl.CommandHandler;
import org.apache.pekko.persistence.typed.javadsl.EventHandler;
import org.apache.pekko.persistence.typed.javadsl.EventSourcedBehavior;

/** The account of the benches as a Pekko entity; its event has the same 200 bytes as the bare loop's (bench/account.py). */
final class Account extends EventSourcedBehavior<Account.Command, Account.Deposited, Account.State> {
  static final int AMOUNT = 5;
  private static final String NOTE = "x".repeat(67);
  private static final String TIME = "2026-11-24T20:30:00.000000Z";

  /** What is stored, as JSON. */
  static final class Deposited {
    public final String type;
    public final int version;
    public final String account;
    public final int amount;
    public final String time;
    public final String command;
    public final String note;

    @JsonCreator
    Deposited(
        @JsonProperty("type") String type,
        @JsonProperty("version") int version,
        @JsonProperty("account") String account,
        @JsonProperty("amount") int amount,
        @JsonProperty("time") String time,
        @JsonProperty("command") String command,
        @JsonProperty("note") String note) {
      this.type = type;
      this.version = version;
      this.account = account;
      this.amount = amount;
      this.time = time;
      this.command = command;
      this.note = note;
    }
  }

  interface Command {}

  /** Asks for {@code events} deposits in one commit; the answer is the balance. */
  record Deposit(int amount, int events, String id, ActorRef<Integer> replyTo) implements Command {}

  record Ask(ActorRef<Integer> replyTo) implements Command {}

  record Stop() implements Command {}

  static final class State {
    int balance;
    int version;
  }

  private final String id;

  Account(String id) {
    super(PersistenceId.ofUniqueId(id));
    this.id = id;
  }

  @Override
  public State emptyState() {
    return new State();
  }

  @Override
  public CommandHandler<Command, Deposited, State> commandHandler() {
    return newCommandHandlerBuilder()
        .forAnyState()
        .onCommand(
            Deposit.class,
            (state, command) ->
                command.amount() <= 0
                    ? Effect().none()
                    : Effect().persist(deposits(state, command)).thenRun(after -> command.replyTo().tell(after.balance)))
        .onCommand(Ask.class, (state, command) -> Effect().none().thenRun(after -> command.replyTo().tell(after.balance)))
        .onCommand(Stop.class, (state, command) -> Effect().stop())
        .build();
  }

  @Override
  public EventHandler<State, Deposited> eventHandler() {
    return newEventHandlerBuilder()
        .forAnyState()
        .onEvent(
            Deposited.class,
            (state, event) -> {
              state.balance += event.amount;
              state.version = event.version;
              return state;
            })
        .build();
  }

  private List<Deposited> deposits(State state, Deposit command) {
    List<Deposited> events = new ArrayList<>(command.events());
    for (int number = 1; number <= command.events(); number++) {
      events.add(new Deposited("Deposited", state.version + number, id, command.amount(), TIME, command.id(), NOTE));
    }
    return events;
  }
}
